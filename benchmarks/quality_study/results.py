"""The results of the study: their file, tables and sentences."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from quality_study.variants import VARIANTS
from side_by_side.table import NOTHING, Table, thread_count

if TYPE_CHECKING:
    from pathlib import Path

DRAWS = "random signs"


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a model is worth on a text.

    Attributes
    ----------
    perplexity
        Exponential of the mean loss per token.
    divergence
        Mean Kullback-Leibler divergence of its predictions from those of the unquantized model, in
        nats per token.
    """

    perplexity: float
    divergence: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant, measured.

    Attributes
    ----------
    name, tokens
        Of the variant.
    losses
        On each of the texts.
    bytes
        Of the state dict.
    seconds
        Processor time of quantization; 0 if it is not measured.
    memory
        By how many bytes the process grew meanwhile, at most; 0 if it is not measured.
    """

    name: str
    tokens: int
    losses: tuple[Loss, ...]
    bytes: int
    seconds: float = 0.0
    memory: int = 0


@dataclasses.dataclass(frozen=True)
class Gain:
    """What a search for scales gains on some values.

    Attributes
    ----------
    kind
        ``"nf4"`` or ``"fp4"``.
    values
        What they are.
    searched, exhaustive, nested
        By which share the squared error falls: with ``scale_search``, with a search that tries
        hundreds of scales, and with ``scale_search`` and double quantization.
    nested_worse
        The share of blocks that have a larger error then.
    times
        Processor time over that of plain quantization, by dtype.
    """

    kind: str
    values: str
    searched: float
    exhaustive: float
    nested: float
    nested_worse: float
    times: dict[str, float]


@dataclasses.dataclass
class Study:
    """What was measured.

    Attributes
    ----------
    machine
        Processor, versions, date, threads.
    texts
        Tokens of each text.
    gains
        Of the search for scales.
    rows
        The unquantized model first.
    """

    machine: dict[str, Any]
    texts: list[int]
    gains: list[Gain] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)

    def put(self, row: Row) -> None:
        """Add a row, or replace the one of that name; the unquantized model comes first."""
        rows = {each.name: each for each in (*self.rows, row)}
        order = ["bf16", *(variant.name for variant in VARIANTS)]
        self.rows = sorted(rows.values(), key=lambda each: order.index(each.name))

    def save(self, file: Path) -> None:
        """Write everything; the folder is made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def load(file: Path) -> Study:
    """Return what ``save`` has written."""
    content = json.loads(file.read_text())
    rows = [
        Row(**{**row, "losses": tuple(Loss(**loss) for loss in row["losses"])})
        for row in content.pop("rows")
    ]
    gains = [Gain(**gain) for gain in content.pop("gains")]
    return Study(**content, gains=gains, rows=rows)


def about(study: Study) -> str:
    """Return where it was measured, as a list."""
    machine = study.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = thread_count(machine["threads"])
    return f"- {machine['cpu']}, {threads}; {machine['system']}; {versions}; {machine['date']}"


def tables(study: Study) -> list[Table]:
    """Return the tables that have rows."""
    found = [_gains(study), _losses(study)]
    return [table for table in found if table.rows]


def _gains(study: Study) -> Table:
    header = ["values", "type", "squared error", "with an exhaustive search"]
    header += ["with double quantization", "blocks that are worse then"]
    dtypes = study.gains[0].times if study.gains else {}
    header += [f"time, {dtype}" for dtype in dtypes]
    rows = []
    for gain in study.gains:
        shares = (-gain.searched, -gain.exhaustive, -gain.nested)
        cells = [gain.values, gain.kind, *(f"{share:+.1%}" for share in shares)]
        times = (f"x {times:.1f}" for times in gain.times.values())
        rows.append([*cells, f"{gain.nested_worse:.1%}", *times])
    return Table("A search for scales beside plain quantization", header, rows)


def _losses(study: Study) -> Table:
    header = ["", "calibration, tokens", "MB"]
    for tokens in study.texts:
        header += [f"perplexity, {tokens:,} tokens", "divergence"]
    header += ["processor time, s", "memory, MB"]
    return Table("What the model loses", header, [_cells(row) for row in study.rows])


def _cells(row: Row) -> list[str]:
    cells = [row.name, f"{row.tokens:,}" if row.tokens else NOTHING]
    cells.append(f"{row.bytes / 1e6:.1f}" if row.bytes else NOTHING)
    for loss in row.losses:
        divergence = NOTHING if row.name == "bf16" else f"{loss.divergence:.3f}"
        cells += [f"{loss.perplexity:.2f}", divergence]
    cells.append(f"{row.seconds:.1f}" if row.seconds else NOTHING)
    cells.append(f"{row.memory / 1e6:.0f}" if row.memory else NOTHING)
    return cells
