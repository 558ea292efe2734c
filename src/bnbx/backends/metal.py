"""The operations on Apple GPUs; products of many rows are PyTorch's own, of the decoded weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends.decode_first import multiply
from bnbx.backends.loading import Found, find_module
from bnbx.backends.metal_launches import LANES, SIMDS, THREADS
from bnbx.backends.metal_optimizers import MetalOptimizers
from bnbx.backends.native import DTYPES, QUANT_TYPES, _clear_rest
from bnbx.ops import blocks_of, packed_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from bnbx.ops import Int8Quantized

#: Rows of A up to which a SIMD-group for each entry multiplies; with more, the weight is decoded
#: first and PyTorch multiplies. Chosen, not measured.
_FEW_ROWS = 8
#: Rows that a SIMD-group takes: kRows of kernels/metal/gemm_4bit.metal.
_ROWS_AT_ONCE = 4
#: Side of a tile: kSide of kernels/metal/int8_linear_matmul.metal.
_TILE = 32
#: Patterns that kernels/common/quantiles.h counts, values that are counted in 32 bits, and those
#: that a thread of the kernel takes.
_PATTERNS, _SPAN, _COUNTED = 1 << 16, 1 << 30, 64


def find() -> Found | None:
    """Return the module for a torch for Apple's GPUs; say why there is none if there could be."""
    found = Found("_metal", MetalBackend)
    return find_module(found, "MPS", fits_torch=torch.backends.mps.is_built())


def emulated(ext: ModuleType) -> MetalBackend:
    """Return the backend of the tests, whose module has the kernels too, for tensors of the CPU."""
    return MetalBackend(ext, lambda emulator: emulator.library())


class MetalBackend(MetalOptimizers):
    """The operations by kernels in the Metal Shading Language; a method an operation.

    Each method takes the outputs that the contract has allocated, then the operation's arguments.
    """

    def quantize_4bit(
        self,
        outputs: tuple[Tensor, Tensor],
        A: Tensor,
        blocksize: int,
        quant_type: str,
        quant_storage: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        packed, absmax = outputs
        A = A.contiguous()
        _clear_rest(packed, A.numel())
        groups = blocks_of(absmax.numel(), SIMDS)
        given = (A, A.numel(), blocksize, QUANT_TYPES[quant_type], _bytes(packed), absmax)
        self.launch_for("quantize_4bit", A.dtype, groups, *given)
        return outputs

    def scale_search_4bit(
        self,
        absmax: Tensor,
        A: Tensor,
        importance: Tensor | None,
        factors: Sequence[float],
        refinements: int,
        blocksize: int,
        quant_type: str,
    ) -> Tensor:
        A = A.contiguous()
        columns = 0 if importance is None else importance.numel()
        weights = absmax if importance is None else importance.contiguous()
        trials = A.new_tensor(factors, dtype=torch.float32)
        self.launch_for(
            "scale_search_4bit",
            A.dtype,
            blocks_of(absmax.numel(), THREADS),
            A,
            A.numel(),
            weights,
            columns,
            trials,
            len(factors),
            refinements,
            blocksize,
            QUANT_TYPES[quant_type],
            absmax,
        )
        return absmax

    def encode_4bit(
        self,
        packed: Tensor,
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        quant_storage: torch.dtype,
    ) -> Tensor:
        A, absmax = A.contiguous(), absmax.contiguous()
        _clear_rest(packed, A.numel())
        groups = blocks_of(packed_bytes(A.numel()), THREADS)
        how = (_log2(blocksize), QUANT_TYPES[quant_type])
        self.launch_for("encode_4bit", A.dtype, groups, A, A.numel(), absmax, *how, _bytes(packed))
        return packed

    def dequantize_4bit(
        self,
        out: Tensor,
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        groups = blocks_of(packed_bytes(out.numel()), THREADS)
        how = (_log2(blocksize), QUANT_TYPES[quant_type])
        given = (_bytes(A.contiguous()), absmax.contiguous(), out.numel(), *how, out)
        self.launch_for("dequantize_4bit", dtype, groups, *given)
        return out

    def dequantize_4bit_out(self, _: None, *args: Any, out: Tensor) -> None:
        self.dequantize_4bit(out, *args)

    def gemm_4bit(
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
    ) -> Tensor:
        N, K = shapeB
        M = out.numel() // N if N else 0
        scales = self._scales(absmax, *nested)
        if M > _FEW_ROWS:
            weight = self._decoded(A, B, shapeB, scales, blocksize, quant_type)
            return multiply(out, A, weight.t(), bias)
        groups = blocks_of(N * blocks_of(M, _ROWS_AT_ONCE), SIMDS)
        A = A.contiguous()
        weights = (_bytes(B.contiguous()), scales, _log2(blocksize), QUANT_TYPES[quant_type])
        ends = (*_or_any(bias, A), out)
        self.launch_for("gemm_4bit", A.dtype, groups, A, M, N, K, *weights, *ends)
        return out

    def gemm_4bit_transposed(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        *nested: Any,
    ) -> Tensor:
        scales = self._scales(absmax, *nested)
        weight = self._decoded(A, B, shapeB, scales, blocksize, quant_type)
        return multiply(out, A, weight, None)

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
        E, N, K = shapeB
        M = out.shape[0]
        scales = self._scales(absmax, *nested)
        if M > _FEW_ROWS * E:
            weights = self._decoded(A, B, shapeB, scales, blocksize, quant_type)
            return _multiply_grouped(out, A, weights.mT, offsets, bias)
        A, ends = A.contiguous(), offsets.to(torch.int64).contiguous()
        stack = (_bytes(B.contiguous()), scales, _log2(blocksize), QUANT_TYPES[quant_type])
        given = (A, M, ends, E, N, K, *stack, *_or_any(bias, A), out)
        self.launch_for("gemm_4bit_grouped", A.dtype, blocks_of(M * N, SIMDS), *given)
        return out

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
        scales = self._scales(absmax, *nested)
        weights = self._decoded(A, B, shapeB, scales, blocksize, quant_type)
        return _multiply_grouped(out, A, weights, offsets, None)

    def _decoded(
        self,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        scales: Tensor,
        blocksize: int,
        quant_type: str,
    ) -> Tensor:
        weight = A.new_empty(shapeB)
        return self.dequantize_4bit(weight, B, scales, blocksize, quant_type, shapeB, A.dtype)

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
            return absmax.contiguous()
        scales = absmax.new_empty(absmax_8bit.numel())
        nested = (absmax_8bit, absmax, absmax_code, absmax_blocksize)
        return self.dequantize_blockwise(scales, *nested, torch.float32) + absmax_offset

    def quantize_blockwise(
        self, outputs: tuple[Tensor, Tensor], A: Tensor, code: Tensor, blocksize: int
    ) -> tuple[Tensor, Tensor]:
        codes, absmax = outputs
        A = A.contiguous()
        groups = blocks_of(absmax.numel(), SIMDS)
        size = min(blocksize, max(A.numel(), 1))
        given = (A, A.numel(), code.contiguous(), size, codes, absmax)
        self.launch_for("quantize_blockwise", A.dtype, groups, *given)
        return outputs

    def dequantize_blockwise(
        self,
        out: Tensor,
        A: Tensor,
        absmax: Tensor,
        code: Tensor,
        blocksize: int,
        dtype: torch.dtype,
    ) -> Tensor:
        groups = blocks_of(A.numel(), THREADS)
        given = (A.contiguous(), absmax.contiguous(), A.numel(), code.contiguous(), blocksize, out)
        self.launch_for("dequantize_blockwise", dtype, groups, *given)
        return out

    def dequantize_blockwise_out(self, _: None, *args: Any, out: Tensor) -> None:
        self.dequantize_blockwise(out, *args)

    def int8_vectorwise_quant(
        self, outputs: Int8Quantized, A: Tensor, threshold: float = 0.0
    ) -> Int8Quantized:
        codes, stats, mask = outputs
        A = A.contiguous()
        rows, columns = A.shape
        flags = _bytes(codes if mask is None else mask.zero_())
        given = (A, columns, float(threshold), codes, stats, flags)
        self.launch_for("int8_vectorwise_quant", A.dtype, rows, *given)
        if mask is None:
            return codes, stats, None
        groups = blocks_of(A.numel(), THREADS)
        self.launch("clear_outlier_columns", groups, flags, A.numel(), columns, codes)
        return codes, stats, mask.nonzero().view(-1)

    def int8_vectorwise_dequant(self, out: Tensor, A: Tensor, stats: Tensor) -> Tensor:
        groups = blocks_of(A.numel(), THREADS)
        given = (A.contiguous(), stats.contiguous(), A.numel(), A.shape[-1], out)
        self.launch("int8_vectorwise_dequant", groups, *given)
        return out

    def int8_double_quant(
        self,
        outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
        A: Tensor,
        threshold: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        rows, columns, row_stats, col_stats, mask = outputs
        A = A.contiguous()
        quantized = self.int8_vectorwise_quant((rows, row_stats, mask), A, threshold)
        groups = blocks_of(A.shape[1], LANES)
        given = (A, *A.shape, float(threshold), columns, col_stats)
        self.launch_for("int8_column_quant", A.dtype, groups, *given)
        return rows, columns, row_stats, col_stats, quantized[2]

    def int8_linear_matmul(self, out: Tensor, A: Tensor, B: Tensor) -> Tensor:
        N, K = B.shape
        M = out.numel() // max(N, 1)
        groups = blocks_of(M, _TILE) * blocks_of(N, _TILE)
        self.launch("int8_linear_matmul", groups, A.contiguous(), B.contiguous(), M, N, K, out)
        return out

    def int8_linear_matmul_out(self, _: None, A: Tensor, B: Tensor, *, out: Tensor) -> None:
        self.int8_linear_matmul(out, A, B)

    def int8_mm_dequant(
        self,
        out: Tensor,
        A: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        dtype: torch.dtype | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        stats = (row_stats.contiguous(), col_stats.contiguous())
        options = _int8_options(out, col_stats.numel(), bias)
        groups = blocks_of(out.numel(), THREADS)
        added = out if bias is None else bias.contiguous()
        self.launch("int8_mm_dequant", groups, options, A.contiguous(), *stats, added, out)
        return out

    def int8_scaled_mm(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        sums = self._int8_sums(A, B)
        return self.int8_mm_dequant(out, sums, row_stats, col_stats, dtype, bias)

    def _int8_sums(self, A: Tensor, B: Tensor) -> Tensor:
        sums = A.new_empty(math.prod(A.shape[:-1]), B.shape[0], dtype=torch.int32)
        return self.int8_linear_matmul(sums, A, B)

    def int8_mixed_scaled_mm(
        self,
        outputs: tuple[Tensor, Tensor | None],
        A: Tensor,
        CA: Tensor,
        CB: Tensor,
        SCA: Tensor,
        SCB: Tensor,
        outlier_cols: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        out, columns = outputs
        if columns is None or outlier_cols is None or outlier_cols.numel() == 0:
            self.int8_scaled_mm(out, CA, CB, SCA, SCB, bias)
            return outputs
        A, outlier_cols = A.contiguous(), outlier_cols.contiguous()
        torch.index_select(A, 1, outlier_cols, out=columns)  # raises on an index out of range
        N, K = CB.shape
        options = _int8_options(out, N, bias, K, outlier_cols.numel(), A.dtype)
        self.launch(
            "int8_mixed_dequant",
            blocks_of(out.numel(), THREADS),
            options,
            self._int8_sums(CA, CB),
            SCA.contiguous(),
            SCB.contiguous(),
            A,
            CB.contiguous(),
            outlier_cols,
            out if bias is None else bias.contiguous(),
            out,
        )
        return outputs

    def int8_linear(
        self,
        out: Tensor,
        A: Tensor,
        CB: Tensor,
        SCB: Tensor,
        threshold: float = 0.0,
        bias: Tensor | None = None,
    ) -> Tensor:
        rows = A.reshape(math.prod(A.shape[:-1]), A.shape[-1])
        codes = rows.new_empty(rows.shape, dtype=torch.int8)
        stats = rows.new_empty(len(rows), dtype=torch.float32)
        mask = rows.new_empty(rows.shape[1], dtype=torch.bool) if threshold > 0.0 else None
        outliers = self.int8_vectorwise_quant((codes, stats, mask), rows, threshold)[2]
        columns = None if outliers is None else rows.new_empty(len(rows), outliers.numel())
        products = (out.view(len(rows), CB.shape[0]), columns)
        self.int8_mixed_scaled_mm(products, rows, codes, CB, stats, SCB, outliers, bias)
        return out

    def estimate_quantiles(
        self, out: Tensor, A: Tensor, offset: float, num_quantiles: int
    ) -> Tensor:
        """Count the values on the device; the host, which waits for it, reads the quantiles off."""
        counts = torch.zeros(_PATTERNS, dtype=torch.int64)
        for span in A.contiguous().view(-1).split(_SPAN):
            counted = span.new_zeros(_PATTERNS, dtype=torch.int32)
            groups = blocks_of(span.numel(), THREADS * _COUNTED)
            self.launch_for("count_patterns", A.dtype, groups, span, span.numel(), counted)
            counts += counted.cpu()
        found = torch.empty(num_quantiles)
        exact = A.dtype is torch.bfloat16
        how = (A.numel(), offset, num_quantiles, exact)
        self.ext.read_quantiles(counts.data_ptr(), *how, found.data_ptr())
        return out.copy_(found)


def _bytes(tensor: Tensor) -> Tensor:
    """Return contiguous memory as bytes."""
    return tensor.view(-1).view(torch.uint8)


def _log2(power: int) -> int:
    return power.bit_length() - 1


def _or_any(bias: Tensor | None, other: Tensor) -> tuple[Tensor, int]:
    """Return what a kernel binds as the bias, and whether it is one."""
    return (other, 0) if bias is None else (bias.contiguous(), 1)


def _int8_options(
    out: Tensor,
    columns: int,
    bias: Tensor | None,
    depth: int = 0,
    outliers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[int]:
    """Return what kernels/metal/int8_mm_dequant.metal calls its options."""
    of_bias = (0, 0) if bias is None else (1, DTYPES[bias.dtype])
    return [out.numel(), columns, depth, *of_bias, DTYPES[out.dtype], outliers, DTYPES[dtype]]


def _multiply_grouped(
    out: Tensor, A: Tensor, weights: Tensor, offsets: Tensor, bias: Tensor | None
) -> Tensor:
    """Multiply by a stack of matrices; the host waits for the offsets.

    What is wrong in them is taken as the kernels take it: each is from the one before to all rows.
    """
    begin, rows = 0, out.shape[0]
    for e, offset in enumerate(offsets.tolist()):
        end = max(begin, min(offset, rows))
        if end > begin:
            multiply(out[begin:end], A[begin:end], weights[e], None if bias is None else bias[e])
        begin = end
    out[begin:].zero_()
    return out
