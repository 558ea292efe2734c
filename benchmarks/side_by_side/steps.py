"""The steps of all optimizers side by side: bnbx's classes in one list with those of others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from side_by_side.comparison import Result

#: The side that the others are compared with: it takes part in every row.
FUSED = "torch AdamW fused"
#: In this order.
LIBRARIES = ("bnbx", "torch", "bitsandbytes", "torchao", "DeepSpeed")


@dataclasses.dataclass
class Step:
    """The step of one optimizer.

    Attributes
    ----------
    name
        Library and class.
    seconds
        By size.
    ratios
        Multiples of the time that fused AdamW took in turn with it, by size.
    bytes_per_parameter
        Of its states, by size.
    """

    name: str
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)
    bytes_per_parameter: dict[str, float] = dataclasses.field(default_factory=dict)


def all_steps(results: Iterable[Result]) -> list[Step]:
    """Return the steps that were timed; of those in several rows the first."""
    found: dict[str, Step] = {}
    for r in results:
        if r.family != "optimizers" or FUSED not in r.times:
            continue
        operation = r.labels["operation"]
        size = r.name.removeprefix(operation).strip()
        sides = [side for side in r.times if side == r.ours or not side.startswith("bnbx")]
        for side in sides:
            name = _name(side, operation)
            step = found.setdefault(name, Step(name))
            if size not in step.seconds:
                step.seconds[size] = r.times[side].median
                step.ratios[size] = r.ratio(side, FUSED)
                step.bytes_per_parameter[size] = r.bytes_per_parameter[side]
    return sorted(found.values(), key=lambda step: LIBRARIES.index(step.name.partition(" ")[0]))


def _name(side: str, operation: str) -> str:
    library = side.partition(" ")[0]
    return f"{library} {operation}" if library in {"bnbx", "bitsandbytes"} else side


def sizes_of(steps: Sequence[Step]) -> list[str]:
    """Return the sizes that were timed, in the order of the rows."""
    return list(dict.fromkeys(size for step in steps for size in step.seconds))
