"""The results as tables, for a terminal or in markdown."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from side_by_side.bars import BARS
from side_by_side.limits import RATE_NAMES
from side_by_side.steps import FUSED, all_steps, sizes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from side_by_side.comparison import Result
    from side_by_side.report import Report
    from side_by_side.steps import Step

#: Of the tables with peers; the steps of optimizers have a table of their own.
FAMILIES = ("quantization", "products")
NOTHING = "-"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text under a title."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def text(self, *, markdown: bool) -> str:
        """Return title and table."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        if markdown:
            lines.insert(1, ["-" * width for width in widths])
        edge, gap = ("| ", " | ") if markdown else ("", "  ")
        padded = (
            gap.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )
        body = "\n".join(f"{edge}{line}{edge[::-1]}".rstrip() for line in padded)
        return f"**{self.title}**\n\n{body}" if markdown else f"{self.title}\n{body}"


def about(report: Report) -> str:
    """Return what was measured on what, as a list."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs; {machine['caches']}",
        f"instruction sets of bnbx: {', '.join(machine['isas'])}",
        f"{machine['system']}; {versions}",
        f"{machine['date']}; {machine['clock']}; medians of up to {machine['rounds']} samples",
        *report.left_out,
    ]
    return "\n".join(f"- {line}" for line in lines)


def duration(seconds: float) -> str:
    """Return three digits with a unit."""
    unit, value = ("us", seconds * 1e6) if seconds < 1e-4 else ("ms", seconds * 1e3)
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def limits(report: Report) -> Table:
    """Return the machine's rates: the median over the rows that needed them."""
    rows = []
    for rate, meaning in RATE_NAMES.items():
        cells = []
        for threads in report.threads:
            found = sorted(
                r.rates()[rate] for r in report.results if r.threads == threads and rate in r.probes
            )
            unit = "GB/s" if rate in {"copy", "read", "update"} else "GFLOP/s"
            cells.append(f"{found[len(found) // 2] / 1e9:.1f} {unit}" if found else NOTHING)
        if any(cell != NOTHING for cell in cells):
            rows.append([rate, meaning, *cells])
    header = ["limit", "measured as", *(thread_count(threads) for threads in report.threads)]
    return Table("Limits of the machine", header, rows)


def bars(report: Report, threads: int) -> Table:
    """Return whether each bar is met."""
    found = {r.name: r for r in report.results if r.threads == threads}
    rows = []
    for bar in BARS:
        if (result := found.get(bar.name)) is None:
            continue
        median, least = (bar.ratio(result, statistic) for statistic in ("median", "minimum"))
        other = result.times[bar.other].median if bar.other in result.times else result.limit()
        ours = result.times[result.ours].median if result.ours else None
        rows.append(
            [
                bar.name,
                str(bar),
                duration(ours) if ours else NOTHING,
                duration(other),
                f"{median:.2f}" if median else NOTHING,
                f"{least:.2f}" if least else NOTHING,
                bar.verdict(result),
            ]
        )
    header = ["operation", "bar", "bnbx", "the other", "ratio", "of minima", "verdict"]
    return Table(f"Bars, {thread_count(threads)}", header, rows)


def instruction_sets(report: Report, threads: int) -> Table:
    """Return bnbx's times by instruction set, with the multiple of the limit."""
    results = [r for r in report.results if r.threads == threads]
    sides = [side for side in _sides(results) if side.startswith("bnbx")]
    rows = [
        [
            r.name,
            duration(r.limit()),
            *(
                f"{duration(r.times[side].median)} ({r.ratio(side, None):.3g}x)"
                if side in r.times
                else NOTHING
                for side in sides
            ),
        ]
        for r in results
        if r.ours
    ]
    title = f"bnbx by instruction set, {thread_count(threads)}: time (multiple of the limit)"
    return Table(title, ["operation", "limit", *sides], rows)


def peers(report: Report, threads: int, family: str) -> Table:
    """Return the best of bnbx beside the other sides, each with its time as a multiple of ours."""
    results = [r for r in report.results if r.threads == threads and r.family == family]
    sides = [side for side in _sides(results) if not side.startswith("bnbx")]
    rows = []
    for r in results:
        ours = duration(r.times[r.ours].median) if r.ours else NOTHING
        rows.append([r.name, ours, *(_peer(r, side) for side in sides)])
    title = f"{family.capitalize()}, {thread_count(threads)}: time (multiple of bnbx's)"
    return Table(title, ["operation", "bnbx", *sides], rows)


def _peer(result: Result, side: str) -> str:
    if side not in result.times:
        return NOTHING
    text = duration(result.times[side].median)
    if result.ours:
        text += f" ({result.ratio(side, result.ours):.3g}x)"
    return text


def steps(report: Report, threads: int) -> Table:
    """Return the steps of all optimizers, each with its time as a multiple of fused AdamW's."""
    found = all_steps([r for r in report.results if r.threads == threads])
    sizes = sizes_of(found)
    rows = [[step.name, *(cell for size in sizes for cell in _step(step, size))] for step in found]
    title = f"Optimizer steps, {thread_count(threads)}: time (multiple of {FUSED}'s)"
    header = (column for size in sizes for column in (size, "state, bytes per parameter"))
    return Table(title, ["optimizer", *header], rows)


def _step(step: Step, size: str) -> tuple[str, str]:
    if size not in step.seconds:
        return NOTHING, NOTHING
    time = f"{duration(step.seconds[size])} ({step.ratios[size]:.3g}x)"
    return time, f"{step.bytes_per_parameter[size]:.2f}"


def sweep(report: Report, threads: int, operation: str, other: str) -> Table:
    """Return how many times faster than another side bnbx is, by shape and rows of activations."""
    cells: dict[tuple[int, int], dict[int, str]] = {}
    for r in report.results:
        at = r.labels
        if r.threads == threads and at["operation"] == operation and "M" in at:
            faster = r.ratio(other, r.ours) if r.ours and other in r.times else None
            row = cells.setdefault((at["N"], at["K"]), {})
            row[at["M"]] = f"{faster:.2f}" if faster else NOTHING
    columns = sorted({M for row in cells.values() for M in row})
    rows = [[f"{N}x{K}", *(row.get(M, NOTHING) for M in columns)] for (N, K), row in cells.items()]
    title = f"{operation}, {thread_count(threads)}: {other}'s time as a multiple of bnbx's"
    return Table(title, ["weight", *(f"M={M}" for M in columns)], rows)


def growth(report: Report, threads: int) -> Table:
    """Return bnbx's nanoseconds per element, by size."""
    cells: dict[str, dict[int, str]] = {}
    for r in report.results:
        if r.threads == threads and "numel" in r.labels and r.ours:
            numel = r.labels["numel"]
            row = cells.setdefault(r.labels["operation"], {})
            row[numel] = f"{r.times[r.ours].median / numel * 1e9:.3f}"
    columns = sorted({numel for row in cells.values() for numel in row})
    rows = [[name, *(row.get(n, NOTHING) for n in columns)] for name, row in cells.items()]
    title = f"Growth, {thread_count(threads)}: bnbx's nanoseconds per element"
    return Table(title, ["elements", *(f"2^{n.bit_length() - 1}" for n in columns)], rows)


def operations(report: Report, threads: int) -> list[Table]:
    """Return the tables of the operations that have rows."""
    found = [bars(report, threads), instruction_sets(report, threads)]
    found += [peers(report, threads, family) for family in FAMILIES]
    return [table for table in found if table.rows]


def sweeps(report: Report, threads: int) -> list[Table]:
    """Return the tables of a sweep that have rows."""
    found = [
        sweep(report, threads, operation, other)
        for operation in ("gemm_4bit", "Linear8bitLt")
        for other in ("torch bf16", "bitsandbytes")
    ]
    return [table for table in (*found, growth(report, threads)) if table.rows]


def tables(report: Report) -> list[Table]:
    """Return the tables of a report for a terminal."""
    by_threads = sweeps if report.sweep else operations
    found = [limits(report), *(t for n in report.threads for t in by_threads(report, n))]
    if not report.sweep:
        found += [steps(report, threads) for threads in report.threads]
    return [table for table in found if table.rows]


def formulas(results: Sequence[Result]) -> Table:
    """Return how the limit of each operation is computed."""
    rows = {r.labels["operation"]: [r.labels["operation"], r.work.formula] for r in results}
    return Table("Limits of the operations, in seconds", ["operation", "limit"], [*rows.values()])


def thread_count(count: int) -> str:
    """Say how many threads there are."""
    return f"{count} thread{'s' if count > 1 else ''}"


def _sides(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(side for r in results for side in r.times))
