"""Times calls in turn, so that what disturbs the machine disturbs all sides alike."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

#: A sample repeats its call until it has taken about this long, in seconds.
SAMPLE_TIME = 0.02
#: Samples of a call that is slow, unless one call alone takes the whole budget.
FEWEST_SAMPLES = 3

Function = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Call:
    """What one side does.

    Attributes
    ----------
    functions
        The same call on equal data in different memory. They take turns, so that none finds its
        data in a cache.
    prepare
        Called before each sample, untimed.
    bytes_per_parameter
        Asked after the timing; for optimizers.
    """

    functions: Sequence[Function]
    prepare: Function | None = None
    bytes_per_parameter: Callable[[], float] | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to time, and with which clock.

    Attributes
    ----------
    rounds
        Samples of each side, if the budget suffices.
    budget
        Seconds to spend on each side's samples.
    cpu_time
        Whether to take the CPU time of the calling thread, which what else runs on the machine
        disturbs less. It is right with one thread only.
    """

    rounds: int = 25
    budget: float = 1.0
    cpu_time: bool = False


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds per call: the median and the minimum of the samples, and how many there were."""

    median: float
    minimum: float
    samples: int


class Sampler:
    """The samples of one side."""

    def __init__(self, call: Call, settings: Settings) -> None:
        self._prepare = call.prepare
        self._functions = itertools.cycle(call.functions)
        self._clock = time.thread_time if settings.cpu_time else time.perf_counter
        self._repeats = 1
        self._seconds: list[float] = []
        seconds = self._time()  # the first call may allocate or compile
        if seconds < settings.budget:
            seconds = min(self._time() for _ in range(2))
        self._repeats = max(1, round(SAMPLE_TIME / seconds))
        affordable = int(settings.budget / (seconds * self._repeats))
        fewest = FEWEST_SAMPLES if seconds < settings.budget else 1
        self.samples = min(settings.rounds, max(fewest, affordable))

    def _time(self) -> float:
        if self._prepare:
            self._prepare()
        start = self._clock()
        for function in itertools.islice(self._functions, self._repeats):
            function()
        return (self._clock() - start) / self._repeats

    def sample(self) -> float:
        """Time the call once more, and return the seconds."""
        self._seconds.append(self._time())
        return self._seconds[-1]

    def times(self) -> Times:
        """Return what the samples say."""
        return Times(statistics.median(self._seconds), min(self._seconds), len(self._seconds))


def takes_part(index: int, rounds: int, samples: int) -> bool:
    """Return whether a side with ``samples`` samples, evenly spread, has one in this round."""
    return (index + 1) * samples // rounds > index * samples // rounds


def interleaved(calls: Mapping[str, Call], settings: Settings) -> dict[str, Times]:
    """Time the calls in turn, A B C B C A C A B ..., and return the times of each.

    A busy neighbour slows a whole round, so that the ratio of two medians holds on a noisy machine.
    """
    samplers = {name: Sampler(call, settings) for name, call in calls.items()}
    order = list(samplers.values())
    for index in range(settings.rounds):
        for sampler in order:
            if takes_part(index, settings.rounds, sampler.samples):
                sampler.sample()
        order.append(order.pop(0))
    return {name: sampler.times() for name, sampler in samplers.items()}
