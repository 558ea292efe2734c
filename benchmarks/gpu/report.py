"""The results as a file, and as tables with what each operation is to reach."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from common import write_report
from gpu.cases import DENSE
from side_by_side.table import Table, duration
from side_by_side.timing import Times

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

OURS, PEER, LIMIT = "bnbx", "bitsandbytes", "limit"
#: Times that differ by less are the same: not slower.
TOLERANCE = 1.02
#: How much faster than bitsandbytes all rows are to be in the geometric mean.
MEAN_SPEEDUP = 1.3


@dataclasses.dataclass(frozen=True)
class Row:
    """The times of a case.

    Attributes
    ----------
    name, labels, moved
        As in the case.
    times
        By side.
    failures
        Side -> why it could not be timed.
    """

    name: str
    labels: dict[str, Any]
    moved: int
    times: dict[str, Times]
    failures: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bar:
    """At most ``factor`` times what another side, or the copy of as many bytes, takes."""

    other: str
    factor: float

    def __str__(self) -> str:
        """Say it as people do."""
        if self.other == LIMIT:
            return f"{100 / self.factor:.0f}% of the copy's bandwidth"
        if self.factor < 1:
            return f"{1 / self.factor:.3g}x faster than {self.other}"
        return f"at most {self.factor:.3g}x {self.other}"


@dataclasses.dataclass
class Report:
    """A run: what it was on, the bytes per second of a copy, the rows, and what was left out."""

    machine: dict[str, Any]
    bandwidth: float
    rows: list[Row] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def save(self, file: Path) -> None:
        """Write everything, a row to a line; the folder is made."""
        write_report(self, "rows", file)

    def seconds(self, row: Row, side: str) -> float | None:
        """Return what a side takes; None if it was not timed."""
        if side == LIMIT:
            return row.moved / self.bandwidth
        return row.times[side].median if side in row.times else None

    def ratio(self, row: Row, other: str) -> float | None:
        """Return bnbx's time as a multiple of another side's."""
        ours, theirs = self.seconds(row, OURS), self.seconds(row, other)
        return ours / theirs if ours and theirs else None


def load(file: Path) -> Report:
    """Return what ``save`` has written."""
    content = json.loads(file.read_text())
    rows = []
    for entry in content.pop("rows"):
        entry["times"] = {side: Times(**times) for side, times in entry["times"].items()}
        rows.append(Row(**entry))
    return Report(**content, rows=rows)


def bars_of(row: Row) -> list[Bar]:
    """Return what is asked of a row."""
    operation, M = row.labels["operation"], row.labels.get("M", 0)
    found = []
    if operation.startswith(("quantize", "dequantize")):
        found.append(Bar(LIMIT, 1 / 0.85))
    elif operation == "gemm_4bit" and M == 1:
        found.append(Bar(LIMIT, 1 / 0.75))
    elif operation == "gemm_4bit" and M == 16:
        found.append(Bar(DENSE, 1 / 2))
    elif operation == "gemm_4bit" and M >= 128:
        found.append(Bar(DENSE, 1.15))
    elif operation == "Linear8bitLt" and M >= 512:
        found.append(Bar(DENSE, 1 / 1.2))
    elif operation == "Adam8bit":
        found.append(Bar(LIMIT, 1 / 0.85) if row.labels["count"] == 1 else Bar(PEER, 1 / 5))
    return [*found, Bar(PEER, 1.0)]


def verdict(report: Report, row: Row, bar: Bar) -> str:
    """Return whether bnbx is below a bar."""
    ratio = report.ratio(row, bar.other)
    if ratio is None:
        return "not measured"
    at_most = bar.factor * (TOLERANCE if bar.factor == 1.0 else 1.0)
    return "met" if ratio <= at_most else f"missed by {ratio / bar.factor:.2f}x"


def bars(report: Report) -> Table:
    """Return every bar, and whether it is met."""
    rows = []
    for row in report.rows:
        for bar in bars_of(row):
            ours, theirs = report.seconds(row, OURS), report.seconds(row, bar.other)
            ratio = report.ratio(row, bar.other)
            cells = [duration(seconds) if seconds else "-" for seconds in (ours, theirs)]
            cells.append(f"{ratio:.2f}" if ratio else "-")
            rows.append([row.name, str(bar), *cells, verdict(report, row, bar)])
    mean = mean_speedup(report)
    met = "not measured" if mean is None else "met" if mean >= MEAN_SPEEDUP else "missed"
    value = "-" if mean is None else f"{mean:.2f}x"
    asked = f"{MEAN_SPEEDUP}x faster than {PEER}"
    rows.append(["geometric mean", asked, "-", "-", value, met])
    return Table("Bars", ["operation", "bar", "bnbx", "the other", "ratio", "verdict"], rows)


def times(report: Report) -> Table:
    """Return the times of all sides, with their multiples of bnbx's."""
    sides = list(dict.fromkeys(side for row in report.rows for side in row.times))
    lines = []
    for row in report.rows:
        ours = report.seconds(row, OURS)
        cells = []
        for side in sides:
            seconds = report.seconds(row, side)
            multiple = f" ({seconds / ours:.2f}x)" if seconds and ours and side != OURS else ""
            cells.append(f"{duration(seconds)}{multiple}" if seconds else "-")
        share = report.ratio(row, LIMIT) if row.moved else None
        lines.append([row.name, *cells, f"{100 / share:.0f}%" if share else "-"])
    header = ["operation", *sides, "bnbx's share of the copy's bandwidth"]
    return Table("Times (multiple of bnbx's)", header, lines)


def mean_speedup(report: Report) -> float | None:
    """Return how many times faster than bitsandbytes bnbx is: the geometric mean of all rows."""
    ratios = [ratio for row in report.rows if (ratio := report.ratio(row, PEER))]
    return math.exp(-sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def text(report: Report, *, markdown: bool) -> str:
    """Return what was measured on what, and the tables."""
    machine: Iterable[str] = (f"{key}: {value}" for key, value in report.machine.items())
    failures = (
        f"{row.name}, {side}: {why}" for row in report.rows for side, why in row.failures.items()
    )
    copied = f"copy of a buffer: {report.bandwidth / 1e9:.0f} GB/s, read plus written"
    about = "\n".join(f"- {line}" for line in (*machine, copied, *report.left_out, *failures))
    tables = (table(report).text(markdown=markdown) for table in (bars, times))
    return "\n\n".join((about, *tables)) + "\n"
