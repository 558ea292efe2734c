"""The update rule of each optimizer in plain PyTorch, for ``reference.py``.

A rule takes the constants, the gradient, the parameter and its states and returns the direction in
which the parameter moves, as a multiple of ``lr``, and the new states. ``kernels/common`` names the
papers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnbx.ops import OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Constants:
    """The constants of one update; those that change from step to step may be tensors."""

    step: int | Tensor
    lr: float | Tensor
    beta1: float
    beta2: float
    beta3: float | Tensor
    alpha: float | Tensor
    eps: float
    weight_decay: float
    gnorm_scale: float | Tensor
    skip_zeros: bool
    max_unorm: float


Moved = tuple[Tensor, list[Tensor]]


def _adam(c: Constants, g: Tensor, _: Tensor, m: Tensor, v: Tensor) -> Moved:
    m = m * c.beta1 + (1.0 - c.beta1) * g
    v = v * c.beta2 + (1.0 - c.beta2) * g * g
    denominator = (v / (1.0 - c.beta2**c.step)).sqrt() + c.eps
    return m / (1.0 - c.beta1**c.step) / denominator, [m, v]


def _momentum(c: Constants, g: Tensor, p: Tensor, m: Tensor) -> Moved:
    g = g + c.weight_decay * p
    later = m * c.beta1 + (1.0 - c.beta2) * g
    m = torch.where(torch.as_tensor(c.step > 1, device=g.device), later, g)
    return m, [m]


def _nesterov(c: Constants, g: Tensor, p: Tensor, m: Tensor) -> Moved:
    m, states = _momentum(c, g, p, m)
    return g + c.weight_decay * p + c.beta1 * m, states


def _rmsprop(c: Constants, g: Tensor, p: Tensor, v: Tensor) -> Moved:
    g = g + c.weight_decay * p
    v = v * c.beta1 + (1.0 - c.beta1) * g * g
    return g / (v.sqrt() + c.eps), [v]


def _adagrad(c: Constants, g: Tensor, p: Tensor, v: Tensor) -> Moved:
    g = g + c.weight_decay * p
    v = v + g * g
    return g / (v.sqrt() + c.eps), [v]


def _lion(c: Constants, g: Tensor, _: Tensor, m: Tensor) -> Moved:
    mixed = m * c.beta1 + (1.0 - c.beta1) * g
    direction = mixed.sign().where(~mixed.isnan(), mixed)
    return direction, [m * c.beta2 + (1.0 - c.beta2) * g]


def _ademamix(c: Constants, g: Tensor, _: Tensor, m: Tensor, v: Tensor) -> Moved:
    fast = m[0] * c.beta1 + (1.0 - c.beta1) * g
    slow = m[1] * c.beta3 + (1.0 - c.beta3) * g
    v = v * c.beta2 + (1.0 - c.beta2) * g * g
    denominator = (v / (1.0 - c.beta2**c.step)).sqrt() + c.eps
    mixed = fast / (1.0 - c.beta1**c.step) + c.alpha * slow
    return mixed / denominator, [torch.stack([fast, slow]), v]


_RULES: dict[str, Callable[..., Moved]] = {
    "adam": _adam,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "lion": _lion,
    "ademamix": _ademamix,
}
#: Rules whose decay acts on the parameter; that of the others acts through the gradient.
_DECOUPLED = ("adam", "lion", "ademamix")


def update(
    optimizer_name: str, c: Constants, g: Tensor, p: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the new parameter and states, in float32, and the norm of the update without lr."""
    name = OPTIMIZERS[optimizer_name]
    g, p = g.float() * c.gnorm_scale, p.float()
    direction, new = _RULES[name](c, g, p, *states)
    if c.skip_zeros:
        direction = direction.masked_fill(g == 0.0, 0.0)
        new = [torch.where(g == 0.0, old, value) for old, value in zip(states, new, strict=True)]
    unorm, limit = direction.norm(), c.max_unorm * p.norm()
    # A parameter of zeros may move freely: no share of its norm would ever let it.
    shorten = (limit > 0.0) & (unorm > limit)
    decay = 1.0 - c.lr * c.weight_decay if name in _DECOUPLED else 1.0
    moved = p * decay - c.lr * direction * torch.where(shorten, limit / unorm, 1.0)
    if c.skip_zeros:
        moved = torch.where(g == 0.0, p, moved)
    return moved, new, unorm
