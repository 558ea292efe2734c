"""Times what the GPU does, without the gaps in which it waits for the program."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING

import torch

from side_by_side.timing import Times

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Function = Callable[[], object]

#: Seconds that a sample should take.
SAMPLE_TIME = 0.01
#: Launches that fit into the queue of a stream; more would wait for it. Calls launch a few each.
MOST_CALLS = 200
#: Cycles a second of the fastest clock of a GPU, for sleeping.
CYCLES = 2.0e9


@dataclasses.dataclass(frozen=True)
class Call:
    """What one side does.

    Attributes
    ----------
    functions
        The same call on equal data in different memory, together beyond the caches.
    wall
        Whether the program counts as well: for steps of many small tensors. Otherwise the calls are
        queued while the GPU sleeps, and only what it does then is timed.
    """

    functions: Sequence[Function]
    wall: bool = False


class _Sampler:
    def __init__(self, call: Call, device: torch.device) -> None:
        self._call, self._device = call, device
        self._next = 0
        self._seconds: list[float] = []
        self._run(len(call.functions))  # what is allocated or chosen at the first call
        self._synchronize()
        start = time.perf_counter()
        self._run(3)
        self._synchronize()
        once = (time.perf_counter() - start) / 3
        self._count = min(MOST_CALLS, max(1, round(SAMPLE_TIME / once)))

    def _run(self, count: int) -> None:
        functions = self._call.functions
        for _ in range(count):
            functions[self._next % len(functions)]()
            self._next += 1

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def sample(self) -> None:
        """Time some calls."""
        self._synchronize()
        if self._device.type != "cuda" or self._call.wall:
            start = time.perf_counter()
            self._run(self._count)
            self._synchronize()
            seconds = time.perf_counter() - start
        else:
            seconds = self._queued()
        self._seconds.append(seconds / self._count)

    def _queued(self) -> float:
        start = time.perf_counter()
        self._run(self._count)
        queueing = time.perf_counter() - start
        self._synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(1.5 * queueing * CYCLES))  # noqa: SLF001 (there is no public one)
        first.record()
        self._run(self._count)
        last.record()
        self._synchronize()
        return first.elapsed_time(last) * 1e-3

    def times(self) -> Times:
        """Return the statistics of the samples."""
        return Times(statistics.median(self._seconds), min(self._seconds), len(self._seconds))


def interleaved(
    sides: Mapping[str, Callable[[], Call]], rounds: int, device: torch.device
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time the sides in turn; return the times of each, and why others failed."""
    samplers: dict[str, _Sampler] = {}
    failures = {name: _prepare(samplers, name, make, device) for name, make in sides.items()}
    for _ in range(rounds):
        for sampler in samplers.values():
            sampler.sample()
    times = {name: sampler.times() for name, sampler in samplers.items()}
    return times, {name: why for name, why in failures.items() if why}


def _prepare(
    samplers: dict[str, _Sampler], name: str, make: Callable[[], Call], device: torch.device
) -> str:
    try:
        samplers[name] = _Sampler(make(), device)
    except Exception as failure:  # noqa: BLE001 (another library's; the table says why)
        return f"{type(failure).__name__}: {failure}".splitlines()[0]
    return ""
