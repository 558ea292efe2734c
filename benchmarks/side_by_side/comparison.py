"""One row of the table: the sides of one operation, timed together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from side_by_side.limits import Work, counted, probes
from side_by_side.timing import Times, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from side_by_side.timing import Call, Settings


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An operation and those who can do it.

    Attributes
    ----------
    family
        ``"quantization"``, ``"products"`` or ``"optimizers"``: rows with the same peers.
    work
        What each side has to do.
    sides
        Side -> function that prepares its data and returns what to time.
    labels
        What else a table or a plot needs to know, such as a shape.
    """

    family: str
    work: Work
    sides: dict[str, Callable[[], Call]]
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """The times of a comparison.

    Attributes
    ----------
    name
        Unique among the results with as many threads.
    family, work, labels
        As in the comparison.
    threads
        Threads of each side.
    times
        By side.
    probes
        Times of what measures the machine's limits, by rate, taken in turn with the sides.
    bytes_per_parameter
        Of an optimizer's state, by side.
    """

    name: str
    family: str
    threads: int
    work: Work
    times: dict[str, Times]
    probes: dict[str, Times]
    bytes_per_parameter: dict[str, float]
    labels: dict[str, Any]

    def rates(self, statistic: str = "median") -> dict[str, float]:
        """Return bytes or operations per second by rate: at the median or the minimum."""
        return {
            rate: counted(rate) / getattr(times, statistic) for rate, times in self.probes.items()
        }

    def limit(self, statistic: str = "median") -> float:
        """Return the seconds that the machine's limits allow."""
        return self.work.limit(self.rates(statistic))

    @property
    def ours(self) -> str | None:
        """The bnbx side with the best instruction set, which is the first."""
        return next((side for side in self.times if side.startswith("bnbx")), None)

    def ratio(self, side: str, other: str | None, statistic: str = "median") -> float:
        """Return the side's time as a multiple of another side's, or of the limit for None."""
        base = getattr(self.times[other], statistic) if other else self.limit(statistic)
        return getattr(self.times[side], statistic) / base


def compare(
    name: str,
    comparison: Comparison,
    threads: int,
    settings: Settings,
    chosen: Iterable[str],
) -> Result:
    """Time the chosen sides, in turn with what measures the machine's limits."""
    sides = {side: comparison.sides[side]() for side in chosen}
    limits = probes(comparison.work.rates)
    times = interleaved({**sides, **limits}, settings)
    return Result(
        name,
        comparison.family,
        threads,
        comparison.work,
        {side: times[side] for side in sides},
        {rate: times[rate] for rate in limits},
        {side: ask() for side, call in sides.items() if (ask := call.bytes_per_parameter)},
        comparison.labels,
    )
