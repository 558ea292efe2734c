"""The kernels of the CPU, and torch's product where there is none better.

A vector kernel decodes a 4-bit weight again for every few rows of activations; tiles, which are for
bfloat16, do so for some hundred. For many rows of another dtype, or without tiles, it is faster to
decode the weight to float32 once, slice by slice so that it stays in the cache, and to leave the
product to the BLAS of torch.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends import metal
from bnbx.backends.loading import Found
from bnbx.backends.native_grouped import NativeGroupedBackend
from bnbx.backends.xpu import keep_compiled_kernels
from bnbx.ops.checks import read_offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    Decode = Callable[[Tensor, int, int], None]

#: Rows from which on torch's product is the faster one, measured with AVX2 and AVX-512.
_MANY_ROWS = {torch.float32: 192, torch.float16: 65, torch.bfloat16: 65}
#: Instruction sets with products of bfloat16 matrices.
_WITH_TILES = ("amx", "neon_mmla")
#: What ``python -m bnbx`` says of it.
NOTE = (
    f"torch multiplies {_MANY_ROWS[torch.float32]} rows of float32, {_MANY_ROWS[torch.float16]} of "
    "16 bits, or more, by 4-bit weights; not bfloat16 where there are tiles for it"
)
#: Of a decoded slice of the weight.
_SLICE_BYTES = 16 << 20


def find() -> Found:
    """Return the module of the CPU, or what tests have in its place, on tensors of the CPU.

    That is the emulator of GPUs, SYCL's device that is a CPU, or the emulator of Metal.
    """

    def is_set(name: str) -> bool:
        return os.environ.get(name) == "1"

    if is_set("BNBX_SIMT"):
        return Found("_simt", lambda ext: NativeGroupedBackend(ext, lambda _: 0))
    if is_set("BNBX_SYCL_CPU"):
        keep_compiled_kernels()
        return Found("_sycl", lambda ext: NativeGroupedBackend(ext, lambda _: 0))
    if is_set("BNBX_METAL_EMULATOR"):
        return Found("_metal_emulator", metal.emulated)
    return Found("_cpu", CpuBackend, details={"note": NOTE})


class CpuBackend(NativeGroupedBackend):
    """The native backend; products of many rows go through BLAS where the kernels have no tiles."""

    def __init__(self, ext: ModuleType) -> None:
        super().__init__(ext, lambda _: 0)

    def _multiply_4bit(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        *nested: Any,
        transposed: bool = False,
    ) -> Tensor:
        if not self._is_for_blas(A, B):
            call = (A, B, shapeB, absmax, blocksize, quant_type, bias, *nested)
            return super()._multiply_4bit(out, *call, transposed=transposed)
        decode = self._decoder(B, self._scales(absmax, *nested), blocksize, quant_type)
        slices = _slices(shapeB, blocksize, decode)
        return _multiply_slices(out, A, shapeB, slices, bias, transposed=transposed)

    def _multiply_grouped(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        offsets: Tensor,
        bias: Tensor | None = None,
        *nested: Any,
        transposed: bool = False,
    ) -> Tensor:
        ends = read_offsets(offsets, out.shape[0])
        weights = (B, shapeB, absmax, blocksize, quant_type)
        kernel: Any = functools.partial(super()._multiply_grouped, transposed=transposed)
        rows = [end - begin for begin, end in itertools.pairwise([0, *ends])]
        most, size = max(rows, default=0), shapeB[1] * shapeB[2]
        # A slice of the weight must begin with a block.
        if size % blocksize or not self._is_for_blas(A[:most], B):
            kernel(out, A, *weights, offsets, bias, *nested)
            return out
        decode = self._decoder(B, self._scales(absmax, *nested), blocksize, quant_type)
        begin = 0
        is_many = [count >= _MANY_ROWS[A.dtype] for count in rows]
        for many, group in itertools.groupby(range(len(rows)), is_many.__getitem__):
            experts = list(group)
            if not many:
                end = ends[experts[-1]]
                own = offsets.clamp(begin, end) - begin  # no rows for the others
                kernel(out[begin:end], A[begin:end], *weights, own, bias, *nested)
                begin = end
                continue
            for e in experts:
                slices = _slices(shapeB[1:], blocksize, decode, e * size)
                part = out[begin : ends[e]], A[begin : ends[e]]
                bias_e = None if bias is None else bias[e]
                _multiply_slices(*part, shapeB[1:], slices, bias_e, transposed=transposed)
                begin = ends[e]
        if begin < len(out):
            out[begin:].zero_()
        return out

    def _is_for_blas(self, A: Tensor, B: Tensor) -> bool:
        if A.numel() < _MANY_ROWS[A.dtype] * A.shape[-1] or B.numel() == 0:
            return False
        return A.dtype != torch.bfloat16 or self.ext.describe()["isa"] not in _WITH_TILES

    def _decoder(self, B: Tensor, scales: Tensor, blocksize: int, quant_type: str) -> Decode:
        """Return what decodes the elements of a weight from the first to before the second."""
        packed = B.contiguous().view(-1).view(torch.uint8)
        scales = scales.contiguous().view(-1)

        def decode(part: Tensor, start: int, stop: int) -> None:
            codes, absmax = packed[start // 2 : -(-stop // 2)], scales[start // blocksize :]
            how = (blocksize, quant_type, part.shape, torch.float32)
            self.dequantize_4bit(part, codes, absmax, *how)

        return decode


def _multiply_slices(
    out: Tensor,
    A: Tensor,
    shapeB: Sequence[int],
    slices: Iterator[tuple[int, int, Tensor]],
    bias: Tensor | None,
    *,
    transposed: bool,
) -> Tensor:
    """Multiply with the slices of a weight in float32."""
    rows = A.reshape(-1, A.shape[-1]).float()
    sums = rows.new_zeros(len(rows), shapeB[1 if transposed else 0])
    for start, stop, part in slices:
        if transposed:
            torch.addmm(sums, rows[:, start:stop], part, out=sums)
        else:
            torch.mm(rows, part.t(), out=sums[:, start:stop])
    if bias is not None:
        sums += bias
    return out.copy_(sums.view(out.shape))


def _slices(
    shapeB: Sequence[int], blocksize: int, decode: Decode, first: int = 0
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield rows of a weight, from the first to before the second, and their values.

    ``first`` is the element that the weight begins with, in a stack of weights.
    """
    N, K = shapeB
    # A multiple of blocksize, so that each slice begins with a block and with a byte.
    step = max(1, _SLICE_BYTES // (4 * K * blocksize)) * blocksize
    values = torch.empty(min(step, N), K)
    for start in range(0, N, step):
        stop = min(start + step, N)
        part = values[: stop - start]
        decode(part, first + start * K, first + stop * K)
        yield start, stop, part
