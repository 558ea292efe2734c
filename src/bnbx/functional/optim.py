"""Single tensors: their update by an optimizer, and clipping their gradient.

``bnbx.optim`` updates lists of them in one call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bnbx.ops import error
from bnbx.ops.checks import check_device

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    torch.ops.bnbx.optimizer_update_blockwise.default(
        optimizer_name,
        8,
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


#: Steps that ``percentile_clipping`` remembers.
CLIPPING_HISTORY = 100


def clipped_norms(
    norms: Tensor, histories: Sequence[Tensor], step: int | Tensor, percentile: int
) -> tuple[Tensor, Tensor]:
    """Put the norms of gradients into their histories and return what they are clipped to.

    Nothing is read by the host.

    Parameters
    ----------
    norms
        float32 of shape ``(N,)``.
    histories, percentile
        As ``gnorm_vec`` and ``percentile`` of ``percentile_clipping``; N of them.
    step
        Number of the step, counted from 1, or a tensor of shape ``(N, 1)`` with those of each.

    Returns
    -------
    clip_values, gnorm_scales
        float32 of shape ``(N,)``.
    """
    places = torch.arange(CLIPPING_HISTORY, device=norms.device)
    replaced = (places == step % CLIPPING_HISTORY) | (step == 1)
    squares = torch.where(replaced, norms.square().unsqueeze(1), torch.stack(list(histories)))
    torch._foreach_copy_(list(histories), list(squares.unbind()))
    clip_values = squares.sort(1).values[:, percentile].sqrt()
    clipped = (clip_values > 0.0) & (norms > clip_values)
    return clip_values, torch.where(clipped, clip_values / norms, 1.0)


def percentile_clipping(
    grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factor that brings a gradient down to a percentile of its last 100 norms.

    Parameters
    ----------
    grad
        The gradient.
    gnorm_vec
        float32 of shape ``(100,)``, the squares of the last norms. That of ``grad`` is put in the
        place of the oldest; in step 1 in every place.
    step
        Number of this step, counted from 1.
    percentile
        How many of the 100 norms are to be below the one that the gradient is clipped to, at most
        99.

    Returns
    -------
    current_gnorm, clip_value, gnorm_scale
        float32 scalars: the norm, the one it is clipped to, and the factor, at most 1. It is 1
        where ``clip_value`` is 0: gradients that have been zero so far say nothing about later
        ones.

    Raises
    ------
    ValueError
        If the history has another shape, dtype or device, or a number is out of range.
    """
    if gnorm_vec.dtype != torch.float32 or tuple(gnorm_vec.shape) != (CLIPPING_HISTORY,):
        expected = f"a float32 tensor of shape ({CLIPPING_HISTORY},)"
        raise error("gnorm_vec", expected, f"{gnorm_vec.dtype} of {tuple(gnorm_vec.shape)}")
    if step < 1:
        raise error("step", "at least 1, counted from the first step", step)
    if not 0 <= percentile < CLIPPING_HISTORY:
        raise error("percentile", f"a number from 0 to {CLIPPING_HISTORY - 1}", percentile)
    check_device(grad, gnorm_vec=gnorm_vec)
    current_gnorm = torch.linalg.vector_norm(grad, dtype=torch.float32)
    clip, scale = clipped_norms(current_gnorm.unsqueeze(0), [gnorm_vec], step, percentile)
    return current_gnorm, clip.squeeze(0), scale.squeeze(0)
