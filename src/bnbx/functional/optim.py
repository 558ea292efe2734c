"""Updates of a single tensor by an optimizer; ``bnbx.optim`` updates lists of them in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor


def _listed(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def optimizer_update_32bit(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    beta1: float,
    eps: float,
    step: int,
    lr: float,
    state2: Tensor | None = None,
    beta2: float = 0.0,
    beta3: float = 0.0,
    alpha: float = 0.0,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    unorm_vec: Tensor | None = None,
    max_unorm: float = 0.0,
    skip_zeros: bool = False,
) -> None:
    """Update a parameter and its float32 optimizer states in place.

    Parameters
    ----------
    optimizer_name
        ``"adam"``, also for AdamW: the decay acts on the parameter.
    g, p
        Gradient and parameter: float32, float16 or bfloat16 of one shape.
    state1, state2
        First and second moment, float32 of that shape.
    beta1, beta2, beta3, alpha, eps, weight_decay
        The optimizer's constants.
    step
        Number of this update, counted from 1.
    lr
        Learning rate.
    gnorm_scale
        The gradient is multiplied by it.
    unorm_vec, max_unorm
        Must be None and 0: updates are not clipped by their norm.
    skip_zeros
        Whether elements with a gradient of zero keep their value and states.

    Raises
    ------
    ValueError
        If clipping is asked for, the optimizer is not known, or a dtype or shape is wrong.

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """
    if max_unorm > 0.0 or unorm_vec is not None:
        name, got = ("max_unorm", max_unorm) if max_unorm > 0.0 else ("unorm_vec", "a tensor")
        raise error(
            name,
            "0.0 and no unorm_vec: clipping by the norm of the update is not implemented",
            got,
            "Clip the gradient with torch.nn.utils.clip_grad_norm_.",
        )
    torch.ops.bnbx.optimizer_update_32bit.default(
        optimizer_name,
        [g],
        [p],
        [state1],
        _listed(state2),
        [step],
        lr,
        beta1,
        beta2,
        beta3,
        alpha,
        eps,
        weight_decay,
        gnorm_scale,
        skip_zeros,
    )


def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: Tensor,
    qmap2: Tensor | None,
    absmax1: Tensor,
    absmax2: Tensor | None,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    skip_zeros: bool = False,
) -> None:
    """Update a parameter and its 8-bit optimizer states in place.

    Parameters
    ----------
    optimizer_name
        ``"adam"``, also for AdamW: the decay acts on the parameter.
    g, p
        Gradient and parameter: float32, float16 or bfloat16 of one shape.
    state1, state2
        First and second moment, uint8 codes of that shape, in blocks of 256.
    beta1, beta2, beta3, alpha, eps, weight_decay
        The optimizer's constants.
    step
        Number of this update, counted from 1.
    lr
        Learning rate.
    qmap1, qmap2
        Codebooks of the two moments, float32 of shape ``(256,)``.
    absmax1, absmax2
        Scales of the two moments, float32, one per block.
    gnorm_scale
        The gradient is multiplied by it.
    skip_zeros
        Whether elements with a gradient of zero keep their value and states.

    Raises
    ------
    ValueError
        If the optimizer is not known, or a dtype, shape or count is wrong.

    References
    ----------
    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization".
    """
    torch.ops.bnbx.optimizer_update_8bit_blockwise.default(
        optimizer_name,
        [g],
        [p],
        [state1],
        _listed(state2),
        qmap1,
        qmap1 if qmap2 is None else qmap2,
        [absmax1],
        _listed(absmax2),
        [step],
        lr,
        beta1,
        beta2,
        beta3,
        alpha,
        eps,
        weight_decay,
        gnorm_scale,
        skip_zeros,
    )
