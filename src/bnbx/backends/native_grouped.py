"""Binds the products with a stack of 4-bit weights, as ``native.py`` does all other operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bnbx.backends.native import NativeBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class NativeGroupedBackend(NativeBackend):
    """``NativeBackend`` with the products of experts.

    The kernels read the offsets, where these are: reading them here would make the host wait for
    the device. So what is wrong with their values is the kernels' to bear.
    """

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
        weights = (B, shapeB, absmax, blocksize, quant_type)
        return self._multiply_grouped(out, A, *weights, offsets, bias, *nested)

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
        weights = (B, shapeB, absmax, blocksize, quant_type)
        return self._multiply_grouped(out, A, *weights, offsets, None, *nested, transposed=True)

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
        ext = self.ext
        kernel = ext.gemm_4bit_grouped_transposed if transposed else ext.gemm_4bit_grouped
        ends = offsets.to(torch.int64).contiguous()
        sizes = (out.shape[0], ends.data_ptr(), *shapeB)
        call = (A, B, absmax, blocksize, quant_type, bias, *nested)
        return self._call_4bit(kernel, sizes, transposed, out, *call)

    def _scales(
        self,
        absmax: Tensor,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
        absmax_blocksize: int = 256,
    ) -> Tensor:
        """Return a scale for each block, whether the scales are nested or not."""
        if absmax_8bit is None or absmax_code is None or absmax_offset is None:
            return absmax
        scales = absmax.new_empty(absmax_8bit.numel())
        nested = (absmax_8bit.view(-1), absmax, absmax_code, absmax_blocksize)
        return self.dequantize_blockwise(scales, *nested, torch.float32) + absmax_offset
