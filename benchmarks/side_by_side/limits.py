"""What the machine can do at most: memory bandwidth and matrix products, measured, not promised."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import torch

from side_by_side.timing import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Bytes of a buffer whose copy or sum measures bandwidth: beyond the last-level cache of a server.
BUFFER = 2**29
#: Rows, columns and depth of the product that measures the matrix units.
PRODUCT = (2048, 4096, 4096)

#: What a rate counts.
RATE_NAMES = {
    "copy": "copy, bytes read plus bytes written",
    "read": "read",
    "bf16": "dense bf16 product of 2048x4096 and 4096x4096",
    "int8": "dense int8 product of the same shape",
    "fp32": "dense float32 product of the same shape",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What any implementation of an operation has to do.

    Attributes
    ----------
    moved
        Bytes read and written, each once.
    memory
        The rate that bounds them: ``"copy"`` where much is written, ``"read"`` where most is read.
    formula
        How ``moved`` and ``operations`` come about, for people.
    operations
        Multiplications and additions of a matrix product.
    unit
        The rate that bounds these: ``"bf16"``, ``"int8"`` or ``"fp32"``.
    """

    moved: int
    memory: str
    formula: str
    operations: int = 0
    unit: str = ""

    @property
    def rates(self) -> list[str]:
        """Names of the rates that matter."""
        return [self.memory, *([self.unit] if self.unit else [])]

    def limit(self, rates: Mapping[str, float]) -> float:
        """Return the least seconds possible at these rates, in bytes and operations per second."""
        arithmetic = self.operations / rates[self.unit] if self.unit else 0.0
        return max(self.moved / rates[self.memory], arithmetic)


@functools.cache
def _buffers() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BUFFER // 4), torch.zeros(BUFFER // 4)


@functools.cache
def _probe(rate: str) -> Call:
    M, N, K = PRODUCT
    if rate == "copy":
        source, target = _buffers()
        return Call([lambda: target.copy_(source)])
    if rate == "read":
        source, _ = _buffers()
        return Call([lambda: torch.dot(source, source)])
    if rate == "int8":
        codes = functools.partial(torch.randint, -127, 128, dtype=torch.int8)
        return Call([functools.partial(torch._int_mm, codes((M, K)), codes((N, K)).t())])  # noqa: SLF001
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[rate]
    A, B = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
    return Call([functools.partial(torch.nn.functional.linear, A, B)])


def probes(rates: Iterable[str]) -> dict[str, Call]:
    """Return what to time, by rate; it runs in turn with what it is the limit of."""
    return {rate: _probe(rate) for rate in rates}


def counted(rate: str) -> int:
    """Return the bytes or operations of one call of the rate's probe."""
    if rate == "copy":
        return 2 * BUFFER
    if rate == "read":
        return BUFFER
    M, N, K = PRODUCT
    return 2 * M * N * K
