"""LLM.int8() product, with the weight in int8 or quantized on the fly."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from bnbx.autograd.rows import grad_of_bias, rows_of
from bnbx.functional.outputs import into
from bnbx.ops import error

_int8_linear = torch.ops.bnbx.int8_linear.default


@dataclasses.dataclass(eq=False)
class MatmulLtState:
    """What ``matmul`` keeps of an int8 weight between calls.

    Attributes
    ----------
    CB, SCB
        The weight's codes, int8 of shape ``(N, K)``, and the float32 absmax of its rows.
    threshold
        Columns of the input with a magnitude of at least this stay in 16 bit; none at 0.
    has_fp16_weights
        Whether the weight given to ``matmul`` is the master copy, quantized anew in each call.
    is_training, use_pool, CxB and all others
        Other libraries set and read them; the product does not depend on them.
    """

    # The order up to idx is that of bitsandbytes.
    force_no_igemmlt: bool = False
    CB: Tensor | None = None
    SB: Tensor | None = None
    SCB: Tensor | None = None
    SBt: Tensor | None = None
    CBt: Tensor | None = None
    subB: Tensor | None = None  # noqa: N815 (a foreign name)
    outlier_pool: Any = None
    idx: Tensor | None = None
    threshold: float = 0.0
    is_training: bool = True
    has_fp16_weights: bool = True
    use_pool: bool = False
    has_accumulated_gradients: bool = False
    CxB: Tensor | None = None
    CxBt: Tensor | None = None
    formatB: str | None = None  # noqa: N815 (a foreign name)

    def reset_grads(self) -> None:
        """Forget the weight; the next product quantizes it again."""
        self.CB = self.CBt = self.CxB = self.CxBt = self.SB = self.SBt = self.SCB = None


class _MatMul8bitLt(torch.autograd.Function):
    """Straight-through gradients: those of the product with the decoded weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        A: Tensor,
        B: Tensor | None,  # noqa: ARG004 (it has a gradient, and its codes are CB)
        bias: Tensor | None,
        CB: Tensor,
        SCB: Tensor,
        threshold: float,
    ) -> Tensor:
        result: Tensor = _int8_linear(A, CB, SCB, threshold, bias)
        return result

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, float],
        output: Tensor,  # noqa: ARG004
    ) -> None:
        A, B, bias, CB, SCB, _ = inputs
        ctx.save_for_backward(CB, SCB, A if ctx.needs_input_grad[1] else None)
        ctx.dtype_B = None if B is None else B.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        CB, SCB, A = ctx.saved_tensors
        grad_A = grad_B = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = torch.ops.bnbx.int8_vectorwise_dequant.default(CB, SCB)
            grad_A = torch.matmul(grad_output, weight.to(grad_output.dtype))
        if ctx.needs_input_grad[1]:
            grad_B = torch.matmul(rows_of(grad_output).t(), rows_of(A)).to(ctx.dtype_B)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_of_bias(grad_output, ctx.bias_dtype)
        return grad_A, grad_B, grad_bias, None, None, None


def _quantized(B: Tensor, state: MatmulLtState) -> tuple[Tensor, Tensor]:
    """Return the weight's codes and scales: the state's, or fresh ones."""
    if not state.has_fp16_weights and state.CB is not None:
        if state.SCB is None:
            raise error("state.SCB", "the scales of state.CB", None)
        return state.CB, state.SCB
    if B.dtype == torch.int8:
        raise error("B", "a floating point weight, because state.CB is None", B.dtype)
    CB, SCB, _ = torch.ops.bnbx.int8_vectorwise_quant.default(B.detach())
    if not state.has_fp16_weights:
        state.CB, state.SCB = CB, SCB
    return CB, SCB


def product(
    A: Tensor,
    weight: Tensor | None,
    CB: Tensor,
    SCB: Tensor,
    threshold: float,
    bias: Tensor | None,
) -> Tensor:
    """Return ``A @ W.T + bias`` with W's codes and scales; ``weight`` is W if it is trained."""
    wants_gradient = (
        A.requires_grad
        or (bias is not None and bias.requires_grad)
        or (weight is not None and weight.requires_grad)
    )
    result: Tensor
    if wants_gradient and torch.is_grad_enabled():
        result = _MatMul8bitLt.apply(A, weight, bias, CB, SCB, threshold)  # type: ignore[no-untyped-call]
    else:
        result = _int8_linear(A, CB, SCB, threshold, bias)
    return result


def matmul(
    A: Tensor,
    B: Tensor,
    out: Tensor | None = None,
    state: MatmulLtState | None = None,
    threshold: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply with an int8 weight: ``A @ B.T + bias``, with gradients for A, the bias and B.

    The rows of A are quantized to int8, all but the columns with outliers. The result does not
    depend on ``state.is_training``.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(..., K)``.
    B
        The weight, of shape ``(N, K)``. Read only where ``state.CB`` does not stand for it: it is
        quantized in each call with ``state.has_fp16_weights``, else once, into the state.
    out
        Written to and returned if given: of the result's shape and dtype.
    state
        The int8 weight and the settings; by default one that quantizes B in each call.
    threshold
        If above 0, the new ``state.threshold``.
    bias
        float32, float16 or bfloat16 of shape ``(N,)``.

    Returns
    -------
    torch.Tensor
        Of shape ``(..., N)`` and A's dtype.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit together.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), section 3.
    """
    state = MatmulLtState() if state is None else state
    if threshold > 0.0:
        state.threshold = threshold
    CB, SCB = _quantized(B, state)
    weight = B if state.has_fp16_weights else None  # an int8 weight gets no gradient
    result = product(A, weight, CB, SCB, state.threshold, bias)
    return result if out is None else into("out", out, result)
