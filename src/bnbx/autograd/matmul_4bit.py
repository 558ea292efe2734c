"""Product with a 4-bit weight."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from bnbx.autograd.rows import grad_of_bias
from bnbx.functional.four_bit import gemm_4bit, gemm_4bit_transposed
from bnbx.functional.outputs import into
from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor

    from bnbx.functional.quant_state import QuantState


def _multiply(
    A: Tensor, B: Tensor, state: QuantState, bias: Tensor | None, transposed: bool
) -> Tensor:
    """Return ``A @ W.T + bias``, or ``A @ W + bias`` if transposed, W being decoded to A's dtype.

    The gradient of one is the other.
    """
    if (A.requires_grad or (bias is not None and bias.requires_grad)) and torch.is_grad_enabled():
        result: Tensor = _MatMul4Bit.apply(A, B, bias, state, transposed)  # type: ignore[no-untyped-call]
        return result
    return _product(A, B, state, bias, transposed)


def _product(
    A: Tensor, B: Tensor, state: QuantState, bias: Tensor | None, transposed: bool
) -> Tensor:
    if bias is not None and bias.dtype != A.dtype:
        bias = bias.to(A.dtype)
    if not transposed:
        return gemm_4bit(A, B, state, bias)
    product = gemm_4bit_transposed(A, B, state)
    return product if bias is None else product + bias


class _MatMul4Bit(torch.autograd.Function):
    """Keeps the packed weight, not the decoded one, between forward and backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        A: Tensor, B: Tensor, bias: Tensor | None, state: QuantState, transposed: bool
    ) -> Tensor:
        return _product(A, B, state, bias, transposed)

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Tensor, Tensor | None, QuantState, bool],
        output: Tensor,  # noqa: ARG004
    ) -> None:
        _, B, bias, ctx.state, ctx.transposed = inputs
        ctx.save_for_backward(B)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        grad_A = grad_bias = None
        if ctx.needs_input_grad[0]:
            (B,) = ctx.saved_tensors
            grad_A = _multiply(grad_output, B, ctx.state, None, not ctx.transposed)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_of_bias(grad_output, ctx.bias_dtype)
        return grad_A, None, grad_bias, None, None


def _warn_of_transposed(state: QuantState) -> None:
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"matmul_4bit: the weight was quantized from a [K, N] tensor, {list(state.shape)}, "
            "which is slow. Quantize its transpose, [N, K] (out_features, in_features).",
            DeprecationWarning,
            stacklevel=3,
        )


def matmul_4bit(
    A: Tensor,
    B: Tensor,
    quant_state: QuantState,
    out: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply with a 4-bit weight W: ``A @ W.T + bias``, with gradients for A and the bias.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(..., K)``.
    B
        The packed weight; also transposed, ``(1, elements)``.
    quant_state
        Its state, of shape ``(N, K)``. ``(K, N)`` works too, slowly and with a DeprecationWarning.
    out
        Written to and returned if given: of the result's shape and dtype.
    bias
        Of shape ``(N,)``; converted to A's dtype.

    Returns
    -------
    torch.Tensor
        Of shape ``(..., N)`` and A's dtype.

    Raises
    ------
    ValueError
        If there is no state, or shapes, dtypes or devices do not fit together.

    References
    ----------
    Dettmers et al. 2023, QLoRA, equations 5 and 6.
    """
    if quant_state is None:
        raise error("quant_state", "the QuantState that quantize_4bit returned", None)
    shape = quant_state.shape
    if len(shape) != 2 or A.dim() < 1:
        got = f"{tuple(shape)} and A of shape {tuple(A.shape)}"
        raise error("quant_state.shape", "(N, K), and A of shape (..., K)", got)
    # A weight may have been quantized as [K, N]; a square one counts as [N, K].
    transposed = shape[0] != shape[1] and A.shape[-1] == shape[0]
    if transposed:
        _warn_of_transposed(quant_state)
    result = _multiply(A, B, quant_state, bias, transposed)
    return result if out is None else into("out", out, result)
