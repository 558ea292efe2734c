"""What the machine can do at most: memory bandwidth and matrix products, measured, not promised."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import torch

from common import int8, normal
from side_by_side.timing import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Bytes of each buffer that measures bandwidth: beyond the last-level cache of a server.
BUFFER = 2**29
#: Rows, columns and depth of the product that measures the matrix units.
PRODUCT = (2048, 4096, 4096)

#: What a rate counts.
RATE_NAMES = {
    "copy": "copy of a buffer, bytes read plus bytes written",
    "read": "dot product of two buffers, bytes read",
    "update": "one buffer added to another, bytes read plus bytes written",
    "bf16": "dense bf16 product of 2048x4096 and 4096x4096",
    "int8": "dense int8 product of the same shape",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What any implementation of an operation has to do.

    Attributes
    ----------
    moved
        Bytes read and written, each once.
    memory
        The rate that bounds them: ``"copy"`` where what is read is written elsewhere, ``"read"``
        where little is written, ``"update"`` where much of what is read is written back.
    formula
        How ``moved`` and ``operations`` come about, for people.
    operations
        Multiplications and additions of a matrix product.
    unit
        The rate that bounds these: ``"bf16"`` or ``"int8"``.
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
    return torch.zeros(BUFFER // 4), torch.randn(BUFFER // 4)


@functools.cache
def _probe(rate: str) -> Call:
    M, N, K = PRODUCT
    if rate == "copy":
        return Call([lambda: _buffers()[0].copy_(_buffers()[1])])
    if rate == "read":
        return Call([lambda: torch.dot(*_buffers())])
    if rate == "update":
        return Call([lambda: _buffers()[0].add_(_buffers()[1])])
    if rate == "int8":
        return Call([functools.partial(torch._int_mm, int8(M, K), int8(N, K).t())])  # noqa: SLF001
    return Call([functools.partial(torch.nn.functional.linear, normal(M, K), normal(N, K))])


def probes(rates: Iterable[str]) -> dict[str, Call]:
    """Return what to time, by rate; it runs in turn with what it is the limit of."""
    return {rate: _probe(rate) for rate in rates}


def counted(rate: str) -> int:
    """Return the bytes or operations of one call of the rate's probe."""
    buffers = {"copy": 2, "read": 2, "update": 3}
    if rate in buffers:
        return buffers[rate] * BUFFER
    M, N, K = PRODUCT
    return 2 * M * N * K
