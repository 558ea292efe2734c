"""Contracts of LLM.int8()."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.ops.batching import one_by_one, rows_at_once
from bnbx.ops.checks import (
    FLOAT_DTYPES,
    check_dtype,
    check_entries,
    check_matrix,
    check_out,
    check_output_dtype,
    check_shape,
)
from bnbx.ops.contract import error, operation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The longest sum of products of two int8 that int32 holds, whatever the codes are.
MAX_INT8_DEPTH = (2**31 - 1) // 128**2

Int8Quantized = tuple[Tensor, Tensor, Tensor | None]


def _check_threshold(threshold: float) -> None:
    if not threshold >= 0.0:
        raise error("threshold", "a number of at least 0", threshold)


def _check_depth(argument: str, K: int) -> None:
    if K > MAX_INT8_DEPTH:
        raise error(
            argument,
            f"a last dimension of at most {MAX_INT8_DEPTH}, because int32 holds no longer sum",
            K,
            "Split the product along K and add its parts in floating point.",
        )


def _fake_outliers(A: Tensor, threshold: float) -> Tensor | None:
    if threshold <= 0.0:
        return None
    count = torch.library.get_ctx().new_dynamic_size()
    return A.new_empty(count, dtype=torch.int64)


def _fake_int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> Int8Quantized:
    codes, stats, _ = int8_vectorwise_quant(A, threshold)
    return codes, stats, _fake_outliers(A, threshold)


def _fake_int8_double_quant(
    A: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    rows, columns, row_stats, col_stats, _ = int8_double_quant(A, threshold)
    return rows, columns, row_stats, col_stats, _fake_outliers(A, threshold)


@operation(
    "int8_vectorwise_quant(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor?)",
    fake=_fake_int8_vectorwise_quant,
)
def int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> Int8Quantized:
    """Codes int8 of A's shape, row absmax float32, outlier columns int64 (None at threshold 0).

    The contract allocates a mask of columns in their place, which the kernel turns into indices.
    """
    check_dtype("A", A, *FLOAT_DTYPES)
    check_matrix("A", A)
    _check_threshold(threshold)
    mask = A.new_empty(A.shape[1], dtype=torch.bool) if threshold > 0.0 else None
    stats = A.new_empty(A.shape[0], dtype=torch.float32)
    return A.new_empty(A.shape, dtype=torch.int8), stats, mask


@operation("int8_vectorwise_dequant(Tensor A, Tensor stats) -> Tensor")
def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """``A * stats / 127`` row by row, float32 of A's shape."""
    check_dtype("A", A, torch.int8)
    if A.dim() < 1:
        raise error("A", "at least 1 dimension", "shape ()")
    check_entries("stats", stats, torch.float32, math.prod(A.shape[:-1]), "one per row of A")
    return A.new_empty(A.shape, dtype=torch.float32)


@operation(
    "int8_double_quant(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor, Tensor, Tensor?)",
    fake=_fake_int8_double_quant,
)
def int8_double_quant(
    A: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Codes by row, codes by column, row absmax, column absmax, outlier columns."""
    rows, row_stats, mask = int8_vectorwise_quant(A, threshold)
    col_stats = A.new_empty(A.shape[1], dtype=torch.float32)
    return rows, rows.new_empty(rows.shape), row_stats, col_stats, mask


def _check_int8_product(A: Tensor, B: Tensor, a: str = "A", b: str = "B") -> tuple[int, ...]:
    check_dtype(a, A, torch.int8)
    check_dtype(b, B, torch.int8)
    check_matrix(b, B)
    N, K = B.shape
    if A.dim() < 1 or A.shape[-1] != K:
        raise error(a, f"a last dimension of {K}, as {b} has", f"shape {tuple(A.shape)}")
    _check_depth(a, K)
    return (*A.shape[:-1], N)


@operation("int8_linear_matmul(Tensor A, Tensor B) -> Tensor")
def int8_linear_matmul(A: Tensor, B: Tensor) -> Tensor:
    """``A @ B.T`` in int32."""
    return A.new_empty(_check_int8_product(A, B), dtype=torch.int32)


@operation("int8_linear_matmul.out(Tensor A, Tensor B, *, Tensor(a!) out) -> ()")
def int8_linear_matmul_out(A: Tensor, B: Tensor, *, out: Tensor) -> None:
    """Write ``A @ B.T`` into ``out``, contiguous int32."""
    check_out(out, _check_int8_product(A, B), torch.int32)


def _check_epilogue(
    shape: Sequence[int],
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None,
    rows: str = "row_stats",
    columns: str = "col_stats",
) -> None:
    row_count = math.prod(shape[:-1])
    check_entries(rows, row_stats, torch.float32, row_count, "one per row of the product")
    check_entries(columns, col_stats, torch.float32, shape[-1], "one per column of the product")
    if bias is not None:
        check_dtype("bias", bias, *FLOAT_DTYPES)
        check_shape("bias", bias, (shape[-1],))


@operation(
    "int8_mm_dequant(Tensor A, Tensor row_stats, Tensor col_stats, ScalarType? dtype=None, "
    "Tensor? bias=None) -> Tensor"
)
def int8_mm_dequant(
    A: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    dtype: torch.dtype | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``A * row_stats * col_stats / 127^2 + bias`` in ``dtype`` (float16 by default)."""
    check_dtype("A", A, torch.int32)
    if A.dim() < 1:
        raise error("A", "at least 1 dimension", "shape ()")
    dtype = dtype or torch.float16
    check_output_dtype("dtype", dtype)
    _check_epilogue(A.shape, row_stats, col_stats, bias)
    return A.new_empty(A.shape, dtype=dtype)


@operation(
    "int8_scaled_mm(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, Tensor? bias=None, "
    "ScalarType? dtype=None) -> Tensor"
)
def int8_scaled_mm(
    A: Tensor,
    B: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``int8_mm_dequant(A @ B.T)`` in one pass, in ``dtype`` (float16 by default)."""
    shape = _check_int8_product(A, B)
    dtype = dtype or torch.float16
    check_output_dtype("dtype", dtype)
    _check_epilogue(shape, row_stats, col_stats, bias)
    return A.new_empty(shape, dtype=dtype)


@operation(
    "int8_mixed_scaled_mm(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, "
    "Tensor? outlier_cols=None, Tensor? bias=None) -> (Tensor, Tensor?)"
)
def int8_mixed_scaled_mm(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The int8 product plus the outlier columns of A in 16 bit; and those columns."""
    check_dtype("A", A, *FLOAT_DTYPES)
    check_matrix("A", A)
    check_shape("CA", CA, A.shape)
    shape = _check_int8_product(CA, CB, "CA", "CB")
    _check_epilogue(shape, SCA, SCB, bias, "SCA", "SCB")
    columns = None
    if outlier_cols is not None:
        check_dtype("outlier_cols", outlier_cols, torch.int64)
        if outlier_cols.dim() != 1:
            raise error("outlier_cols", "1 dimension", f"shape {tuple(outlier_cols.shape)}")
        columns = A.new_empty((A.shape[0], outlier_cols.shape[0]))
    return A.new_empty(shape), columns


def _batch_int8_linear(
    product: Callable[..., Tensor], info: Any, in_dims: Sequence[Any], *args: Any
) -> tuple[Tensor, int]:
    # What is an outlier column depends on all rows of a call.
    has_outliers = len(args) > 3 and args[3] > 0.0
    return (one_by_one if has_outliers else rows_at_once)(product, info, in_dims, *args)


@operation(
    "int8_linear(Tensor A, Tensor CB, Tensor SCB, float threshold=0.0, Tensor? bias=None) "
    "-> Tensor",
    vmap=_batch_int8_linear,
)
def int8_linear(
    A: Tensor, CB: Tensor, SCB: Tensor, threshold: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """LLM.int8() in one call: quantize A's rows, hold outlier columns back in 16 bit, multiply.

    The shapes do not depend on the data, so it compiles into one graph at any threshold.
    """
    check_dtype("A", A, *FLOAT_DTYPES)
    check_dtype("CB", CB, torch.int8)
    check_matrix("CB", CB)
    _check_threshold(threshold)
    N, K = CB.shape
    shape = [*A.shape]
    if not shape or shape[-1] != K:
        raise error("A", f"a last dimension of {K}, as CB has", f"shape {tuple(shape)}")
    _check_depth("A", K)
    check_entries("SCB", SCB, torch.float32, N, "one per row of CB")
    if bias is not None:
        check_dtype("bias", bias, *FLOAT_DTYPES)
        check_shape("bias", bias, (N,))
    shape[-1] = N
    return A.new_empty(*shape)
