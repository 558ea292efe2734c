"""Binds the products with a stack of 4-bit weights, as ``native.py`` does all other operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.backends.native import NativeBackend
from bnbx.ops.checks import read_offsets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class NativeGroupedBackend(NativeBackend):
    """``NativeBackend`` with the products of experts."""

    def gemm_4bit_grouped(
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
    ) -> Tensor:
        ends = _ends_of_groups(offsets, out)
        weights = (B, shapeB, absmax, blocksize, quant_type)
        return self._multiply_grouped(out, A, *weights, ends, bias, *nested)

    def gemm_4bit_grouped_transposed(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        offsets: Tensor,
        *nested: Any,
    ) -> Tensor:
        ends = _ends_of_groups(offsets, out)
        weights = (B, shapeB, absmax, blocksize, quant_type)
        return self._multiply_grouped(out, A, *weights, ends, None, *nested, transposed=True)

    def _multiply_grouped(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        ends: list[int],
        bias: Tensor | None = None,
        *nested: Any,
        transposed: bool = False,
    ) -> Tensor:
        ext = self.ext
        kernel = ext.gemm_4bit_grouped_transposed if transposed else ext.gemm_4bit_grouped
        call = (A, B, absmax, blocksize, quant_type, bias, *nested)
        return self._call_4bit(kernel, ends, shapeB[1:], transposed, out, *call)


def _ends_of_groups(offsets: Tensor, out: Tensor) -> list[int]:
    """Return the rows at which groups end, with zeros in all rows of ``out`` behind the last."""
    ends = read_offsets(offsets, out.shape[0])
    rest = out[ends[-1] if ends else 0 :]
    if rest.numel():
        rest.zero_()
    return ends
