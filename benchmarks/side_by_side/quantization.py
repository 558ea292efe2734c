"""Comparisons of quantization and dequantization, in 4-bit and in 8-bit codes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import torch

import bnbx
from common import normal
from side_by_side.comparison import Comparison
from side_by_side.layers import BLOCKSIZE, MOST_COPIES, ROTATION
from side_by_side.libraries import bitsandbytes, bnbx_sides
from side_by_side.limits import Work
from side_by_side.timing import Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from side_by_side.timing import Function


@dataclasses.dataclass(frozen=True)
class Codes:
    """A format of codes.

    Attributes
    ----------
    bits
        Of a code.
    blocksize
        Elements that share a float32 scale.
    suffix
        Of the functions' names.
    options
        Of the quantizing function.
    """

    bits: int
    blocksize: int
    suffix: str
    options: dict[str, object]

    def work(self, numel: int) -> Work:
        """Return the bytes of ``numel`` bf16 elements, of their codes and of the scales."""
        return Work(
            moved=2 * numel + numel * self.bits // 8 + 4 * math.ceil(numel / self.blocksize),
            memory="copy",
            formula=f"(2 n + n {self.bits} / 8 + 4 n / {self.blocksize}) / copy",
        )

    def quantizer(self, library: ModuleType) -> Callable[..., tuple[torch.Tensor, object]]:
        """Return the library's function with the format's arguments."""
        function = getattr(library.functional, f"quantize_{self.suffix}")
        return functools.partial(function, blocksize=self.blocksize, **self.options)


NF4 = Codes(4, BLOCKSIZE, "4bit", {"quant_type": "nf4"})
EIGHT_BIT = Codes(8, 4096, "blockwise", {})
FORMATS = (NF4, EIGHT_BIT)


def _quantizations(codes: Codes, numel: int, library: ModuleType) -> list[Function]:
    quantize = codes.quantizer(library)
    return [functools.partial(quantize, normal(numel)) for _ in range(_copies(numel))]


def _dequantizations(codes: Codes, numel: int, library: ModuleType) -> list[Function]:
    quantize = codes.quantizer(library)
    dequantize = getattr(library.functional, f"dequantize_{codes.suffix}")
    calls = []
    for _ in range(_copies(numel)):
        packed, state = quantize(normal(numel))
        # Into a tensor that is given; bitsandbytes has no such operation on a CPU.
        out = {"out": torch.empty(numel, dtype=torch.bfloat16)} if library is bnbx else {}
        calls.append(functools.partial(dequantize, packed, state, **out))
    return calls


def _copies(numel: int) -> int:
    """Return how many bf16 tensors take turns, so that none is in a cache."""
    return min(MOST_COPIES, math.ceil(ROTATION / (2 * numel)))


def _comparison(
    operation: str,
    numel: int,
    codes: Codes,
    make: Callable[[Codes, int, ModuleType], list[Function]],
) -> Comparison:
    def peer(library: ModuleType) -> Call:
        return Call(make(codes, numel, library))

    sides = bnbx_sides(functools.partial(make, codes, numel, bnbx))
    if library := bitsandbytes():
        sides["bitsandbytes"] = functools.partial(peer, library)
    labels = {"operation": operation, "numel": numel}
    return Comparison("quantization", codes.work(numel), sides, labels)


def quantize(codes: Codes, numel: int) -> Comparison:
    """Return the comparison of the quantization of ``numel`` bf16 elements."""
    return _comparison(f"quantize_{codes.suffix}", numel, codes, _quantizations)


def dequantize(codes: Codes, numel: int) -> Comparison:
    """Return the comparison of decoding ``numel`` elements to bf16."""
    return _comparison(f"dequantize_{codes.suffix}", numel, codes, _dequantizations)
