"""What the benchmarks share: fresh data, threads, paired timing and the machine's limits."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.codebooks import create_dynamic_map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Rows and columns of the weights: one projection of a 7B model, 32 MiB in 16 bit.
SIZE = 4096
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
#: Rows of activations: one token, a small batch, a large one, a prompt.
ROW_COUNTS = (1, 8, 64, 512)
#: Parameters that the optimizers update, as (count, elements of each): one large, many small.
PARAMETERS = ((1, 2**24), (300, 50_000))
#: Arguments of the optimizer operations that the speed does not depend on.
HYPERPARAMETERS = {
    "lr": 1e-4,
    "beta1": 0.9,
    "beta2": 0.999,
    "beta3": 0.0,
    "alpha": 0.0,
    "eps": 1e-8,
    "weight_decay": 0.01,
}
#: Bytes of the buffers that measure bandwidth: beyond the last-level cache of a large server.
BANDWIDTH_BUFFER = 2**29
#: A sample repeats its call until it has taken about this long, in seconds.
SAMPLE_TIME = 0.02


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return fresh normally distributed values."""
    return torch.randn(shape).to(dtype)


def activations(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return normal values with a thousandth of the columns far out, the case of LLM.int8()."""
    values = torch.randn(shape)
    values[:, torch.randperm(shape[1])[: shape[1] // 1000]] *= 20
    return values.to(dtype)


def int8(*shape: int) -> Tensor:
    """Return fresh int8 codes."""
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def stats(count: int) -> Tensor:
    """Return fresh row or column scales: float32 in [0.5, 1.5)."""
    return torch.rand(count) + 0.5


def weight_4bit(*shape: int, nested: bool) -> dict[str, Any]:
    """Return a fresh NF4 weight as the arguments that the products with one take."""
    packed, absmax = torch.ops.bnbx.quantize_4bit(normal(*shape), 64, "nf4", torch.uint8)
    weight = {"B": packed, "shapeB": shape, "absmax": absmax, "blocksize": 64, "quant_type": "nf4"}
    if not nested:
        return weight
    code, offset = create_dynamic_map(), absmax.mean()
    absmax_8bit, absmax = torch.ops.bnbx.quantize_blockwise(absmax - offset, code, 256)
    scales = {"absmax_8bit": absmax_8bit, "absmax_code": code, "absmax_offset": offset}
    return {**weight, "absmax": absmax, **scales}


def nbytes(*tensors: Tensor) -> int:
    """Return the bytes that the tensors hold together."""
    return sum(t.numel() * t.element_size() for t in tensors)


def set_threads(threads: int) -> None:
    """Give torch and every library that shares its OpenMP runtime ``threads`` threads."""
    torch.set_num_threads(threads)


def default_threads() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sample(call: Callable[[], object], repeats: int) -> float:
    """Return the seconds that one call takes, averaged over ``repeats`` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def paired(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time the calls in turn, A B C A B C ..., and return the seconds of each, round by round.

    A busy neighbour slows a whole round, so that ratios within a round hold on a noisy machine.
    """
    repeats = {}
    for name, call in calls.items():
        call()  # the first call may allocate, or repack a weight
        seconds = min(sample(call, 1) for _ in range(3))
        repeats[name] = max(1, round(SAMPLE_TIME / seconds))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(sample(call, repeats[name]))
    return times


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def bandwidth(rounds: int) -> dict[str, float]:
    """Return bytes per second beyond the caches: of a copy, read plus written, and of a read."""
    source = torch.randn(BANDWIDTH_BUFFER // 4)
    target = torch.zeros_like(source)
    times = paired(
        {"copy": lambda: target.copy_(source), "read": lambda: torch.dot(source, source)}, rounds
    )
    moved = {"copy": 2 * BANDWIDTH_BUFFER, "read": BANDWIDTH_BUFFER}
    return {name: moved[name] / statistics.median(seconds) for name, seconds in times.items()}


def cpu_name() -> str:
    """Return the processor's name as its vendor writes it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(*packages: str) -> str:
    """Return the packages with their versions, or that they are absent, in one line."""
    installed = {d.name: d.version for d in metadata.distributions()}
    return ", ".join(f"{package} {installed.get(package, '(absent)')}" for package in packages)
