"""Products of groups of rows with 4-bit weights of their own, as a mixture of experts has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bnbx.functional.four_bit import gemm_4bit_grouped, gemm_4bit_grouped_transposed
from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor

    from bnbx.functional.quant_state import QuantState


class _MatMul4BitGrouped(torch.autograd.Function):
    """Keeps the packed weights, not the decoded ones, between forward and backward."""

    @staticmethod
    def forward(
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        offsets: Tensor,
        state: QuantState,
        transposed: bool,
    ) -> Tensor:
        return _product(A, B, state, offsets, bias, transposed)

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Tensor, Tensor | None, Tensor, QuantState, bool],
        output: Tensor,  # noqa: ARG004
    ) -> None:
        _, B, bias, offsets, ctx.state, ctx.transposed = inputs
        ctx.save_for_backward(B, offsets)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        B, offsets = ctx.saved_tensors
        grad_A = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_A = _multiply(grad_output, B, ctx.state, offsets, None, not ctx.transposed)
        if ctx.needs_input_grad[2]:
            sums = grad_output.new_zeros(
                offsets.numel() + 1, grad_output.shape[1], dtype=torch.float32
            )
            sums.index_add_(0, _group_of_rows(offsets, len(grad_output)), grad_output.float())
            grad_bias = sums[:-1].to(ctx.bias_dtype)
        return grad_A, None, grad_bias, None, None, None


def _group_of_rows(offsets: Tensor, rows: int) -> Tensor:
    """Return the group of each row; the number of groups for rows behind the last one."""
    numbers = torch.arange(rows, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, numbers, right=True)


def _product(
    A: Tensor,
    B: Tensor,
    state: QuantState,
    offsets: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    if bias is not None and bias.dtype != A.dtype:
        bias = bias.to(A.dtype)
    if not transposed:
        return gemm_4bit_grouped(A, B, state, offsets, bias)
    product = gemm_4bit_grouped_transposed(A, B, state, offsets)
    if bias is None:
        return product
    rows_of_bias = torch.nn.functional.pad(bias, (0, 0, 0, 1))  # zeros behind the last group
    return product.add_(rows_of_bias[_group_of_rows(offsets, len(A))])


def _multiply(
    A: Tensor,
    B: Tensor,
    state: QuantState,
    offsets: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    if (A.requires_grad or (bias is not None and bias.requires_grad)) and torch.is_grad_enabled():
        result: Tensor = _MatMul4BitGrouped.apply(A, B, bias, offsets, state, transposed)  # type: ignore[no-untyped-call]
        return result
    return _product(A, B, state, offsets, bias, transposed)


def matmul_4bit_grouped(
    A: Tensor,
    B: Tensor,
    quant_state: QuantState,
    offsets: Tensor,
    bias: Tensor | None = None,
    *,
    transposed: bool = False,
) -> Tensor:
    """Multiply each group of rows with a 4-bit weight of its own, with gradients for A and bias.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(T, K)``, the rows of the first weight first.
    B
        The packed weights.
    quant_state
        Their state, of shape ``(E, N, K)``; ``(E, K, N)`` if transposed.
    offsets
        int32 or int64 of shape ``(E,)``, ascending: the row behind the last one of each weight, as
        in ``torch.nn.functional.grouped_mm``.
    bias
        Of shape ``(E, N)``; converted to A's dtype.
    transposed
        Whether the weights lie transposed, as those of gpt-oss do.

    Returns
    -------
    torch.Tensor
        Of shape ``(T, N)`` and A's dtype: ``A[i] @ W[e].T + bias[e]`` for the rows ``i`` of weight
        ``e``; ``A[i] @ W[e] + bias[e]`` if transposed. Rows behind the last weight's give zeros.

    Raises
    ------
    ValueError
        If there is no state, shapes, dtypes or devices do not fit together, or if offsets are not
        ascending numbers from 0 to T.
    """
    if quant_state is None:
        raise error("quant_state", "the QuantState that quantize_4bit returned", None)
    shape = tuple(quant_state.shape)
    if len(shape) != 3:
        raise error("quant_state.shape", "(E, N, K)", shape)
    if bias is not None and bias.shape != (shape[0], shape[2 if transposed else 1]):
        expected = f"shape {(shape[0], shape[2 if transposed else 1])}"
        raise error("bias", expected, tuple(bias.shape))
    return _multiply(A, B, quant_state, offsets, bias, transposed)
