"""Updates of a single tensor by an optimizer; ``bnbx.optim`` updates lists of them in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
        ``"adam"`` (AdamW too: the decay acts on the parameter), ``"momentum"``, ``"nesterov"``,
        ``"rmsprop"``, ``"adagrad"``, ``"lion"`` or ``"ademamix"``; ``"lamb"`` is ``"adam"`` and
        ``"lars"`` is ``"momentum"``.
    g, p
        Gradient and parameter: float32, float16 or bfloat16 of one shape.
    state1, state2
        What the optimizer keeps, float32 of that shape; rules with one state take no ``state2``.
        The ``state1`` of AdEMAMix is ``(2, *shape)``.
    beta1, beta2, beta3, alpha, eps, weight_decay
        The optimizer's constants.
    step
        Number of this update, counted from 1.
    lr
        Learning rate.
    gnorm_scale
        The gradient is multiplied by it.
    unorm_vec, max_unorm
        With ``max_unorm`` above 0 an update whose norm, without ``lr``, is above that share of the
        parameter's norm is shortened to it, and ``unorm_vec``, float32 with one element, gets the
        norm of the update.
    skip_zeros
        Whether elements with a gradient of zero keep their value and states.

    Raises
    ------
    ValueError
        If the optimizer is not known, or a dtype or shape is wrong.
    """
    norms: list[Tensor] = []
    if max_unorm > 0.0:
        norms = [torch.zeros(1, device=p.device) if unorm_vec is None else unorm_vec]
    torch.ops.bnbx.optimizer_update_32bit.default(
        optimizer_name,
        [g],
        [p],
        [state1],
        _listed(state2),
        norms,
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
        max_unorm,
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
        ``"adam"`` (AdamW too: the decay acts on the parameter), ``"momentum"``, ``"nesterov"``,
        ``"rmsprop"``, ``"adagrad"``, ``"lion"`` or ``"ademamix"``; ``"lamb"`` is ``"adam"`` and
        ``"lars"`` is ``"momentum"``.
    g, p
        Gradient and parameter: float32, float16 or bfloat16 of one shape.
    state1, state2
        What the optimizer keeps, uint8 codes of that shape, in blocks of 256; rules with one state
        take no ``state2``. The ``state1`` of AdEMAMix is ``(2, *shape)``.
    beta1, beta2, beta3, alpha, eps, weight_decay
        The optimizer's constants.
    step
        Number of this update, counted from 1.
    lr
        Learning rate.
    qmap1, qmap2
        Codebooks of the two states, float32 of shape ``(256,)``.
    absmax1, absmax2
        Scales of the two states, float32, one per block.
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
        [],
        qmap1,
        qmap2,
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
