"""Contracts of blockwise 8-bit quantization."""

from __future__ import annotations

import torch
from torch import Tensor

from bnbx.ops.checks import (
    FLOAT_DTYPES,
    blocks_of,
    check_code,
    check_dtype,
    check_numel,
    check_out,
    check_output_dtype,
    check_positive,
)
from bnbx.ops.contract import operation


@operation("quantize_blockwise(Tensor A, Tensor code, int blocksize) -> (Tensor, Tensor)")
def quantize_blockwise(A: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 of A's shape; absmax float32 per block of the flattened tensor."""
    check_dtype("A", A, *FLOAT_DTYPES)
    check_code("code", code)
    check_positive("blocksize", blocksize)
    absmax = A.new_empty(blocks_of(A.numel(), blocksize), dtype=torch.float32)
    return A.new_empty(A.shape, dtype=torch.uint8), absmax


def _check_dequantize_blockwise(A: Tensor, absmax: Tensor, code: Tensor, blocksize: int) -> None:
    check_dtype("A", A, torch.uint8)
    check_dtype("absmax", absmax, torch.float32)
    check_code("code", code)
    check_positive("blocksize", blocksize)
    check_numel("absmax", absmax, blocks_of(A.numel(), blocksize), "one per block")


@operation(
    "dequantize_blockwise(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) "
    "-> Tensor"
)
def dequantize_blockwise(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype
) -> Tensor:
    """Values of A's shape in ``dtype``."""
    _check_dequantize_blockwise(A, absmax, code, blocksize)
    check_output_dtype("dtype", dtype)
    return A.new_empty(A.shape, dtype=dtype)


@operation(
    "dequantize_blockwise.out(Tensor A, Tensor absmax, Tensor code, int blocksize, "
    "ScalarType dtype, *, Tensor(a!) out) -> ()"
)
def dequantize_blockwise_out(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, *, out: Tensor
) -> None:
    """Write the values into ``out``, contiguous, of A's shape and ``dtype``."""
    _check_dequantize_blockwise(A, absmax, code, blocksize)
    check_output_dtype("dtype", dtype)
    check_out(out, A.shape, dtype)
