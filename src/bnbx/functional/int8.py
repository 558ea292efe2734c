"""LLM.int8(): row-wise int8 quantization and int8 products.

Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale".
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnbx.functional.outputs import into
from bnbx.ops import error


def int8_linear_matmul(
    A: Tensor, B: Tensor, out: Tensor | None = None, dtype: torch.dtype = torch.int32
) -> Tensor:
    """Multiply int8 matrices exactly: ``A @ B.T``.

    Parameters
    ----------
    A
        int8 of shape ``(..., K)``.
    B
        int8 of shape ``(N, K)``.
    out
        Written to and returned if given: contiguous int32 of shape ``(..., N)``.
    dtype
        torch.int32, the only dtype that holds the sums.

    Returns
    -------
    torch.Tensor
        int32 of shape ``(..., N)``.

    Raises
    ------
    ValueError
        If a dtype or shape is wrong.
    """
    if dtype != torch.int32:
        raise error("dtype", torch.int32, dtype, "Convert the result.")
    if out is None:
        product: Tensor = torch.ops.bnbx.int8_linear_matmul.default(A, B)
        return product
    torch.ops.bnbx.int8_linear_matmul.out(A, B, out=out)
    return out


def int8_mm_dequant(
    A: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    out: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Scale an int8 product back: ``A * row_stats * col_stats / 127^2 + bias``.

    Parameters
    ----------
    A
        int32 of shape ``(..., N)``, what ``int8_linear_matmul`` returned.
    row_stats, col_stats
        float32 absmax of the rows of the product's two operands.
    out
        Written to and returned if given: A's shape, float32, float16 or bfloat16.
    bias
        float32, float16 or bfloat16 of shape ``(N,)``.

    Returns
    -------
    torch.Tensor
        A's shape, float16 or ``out``'s dtype.

    Raises
    ------
    ValueError
        If a dtype, shape or count is wrong.
    """
    dtype = torch.float16 if out is None else out.dtype
    result = torch.ops.bnbx.int8_mm_dequant.default(A, row_stats, col_stats, dtype, bias)
    return into("out", out, result)


def int8_double_quant(
    A: Tensor,
    col_stats: Tensor | None = None,
    row_stats: Tensor | None = None,
    out_col: Tensor | None = None,
    out_row: Tensor | None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Quantize a matrix to int8 twice, by rows and by columns.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(rows, columns)``.
    col_stats, row_stats, out_col, out_row
        Must be None: the results are new tensors.
    threshold
        Columns with an element of at least this magnitude are outliers and left out; none at 0.

    Returns
    -------
    torch.Tensor, torch.Tensor
        Codes by rows and codes by columns, int8 of A's shape.
    torch.Tensor, torch.Tensor
        float32 absmax of the rows and of the columns.
    torch.Tensor or None
        int64 indices of the outlier columns; None at threshold 0.

    Raises
    ------
    ValueError
        If an output is given, or a dtype, shape or the threshold is wrong.
    """
    outputs = {
        "col_stats": col_stats,
        "row_stats": row_stats,
        "out_col": out_col,
        "out_row": out_row,
    }
    for name, value in outputs.items():
        if value is not None:
            raise error(name, None, "a tensor", "Use the tensors that are returned.")
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
    result = torch.ops.bnbx.int8_double_quant.default(A, threshold)
    return result


def int8_vectorwise_quant(
    A: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize a matrix to int8, each row by its largest magnitude.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(rows, columns)``.
    threshold
        Columns with an element of at least this magnitude are outliers and left out; none at 0.

    Returns
    -------
    torch.Tensor
        Codes, int8 of A's shape.
    torch.Tensor
        float32 absmax of the rows.
    torch.Tensor or None
        int64 indices of the outlier columns; None at threshold 0.

    Raises
    ------
    ValueError
        If a dtype, shape or the threshold is wrong.
    """
    result: tuple[Tensor, Tensor, Tensor | None]
    result = torch.ops.bnbx.int8_vectorwise_quant.default(A, threshold)
    return result


def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """Undo ``int8_vectorwise_quant``: ``A * stats / 127``, row by row.

    Parameters
    ----------
    A
        int8 of shape ``(..., columns)``.
    stats
        float32 absmax of the rows.

    Returns
    -------
    torch.Tensor
        float32 of A's shape.

    Raises
    ------
    ValueError
        If a dtype or count is wrong.
    """
    values: Tensor = torch.ops.bnbx.int8_vectorwise_dequant.default(A, stats)
    return values
