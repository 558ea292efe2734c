"""The update rules of the optimizers in float64, the oracle of their tests."""

from __future__ import annotations

from types import SimpleNamespace

import torch

#: Rules whose weight decay acts on the parameter and not through the gradient.
DECOUPLED = {"adam", "lion", "ademamix", "lamb"}


def adam(h, step, g, m, v):
    """Loshchilov & Hutter 2019, algorithm 2."""
    m = h.beta1 * m + (1 - h.beta1) * g
    v = h.beta2 * v + (1 - h.beta2) * g * g
    m_hat, v_hat = m / (1 - h.beta1**step), v / (1 - h.beta2**step)
    return m_hat / (v_hat.sqrt() + h.eps), m, v


def momentum(h, step, g, m):
    """torch.optim.SGD: beta1 is the momentum, beta2 the dampening."""
    m = g if step == 1 else h.beta1 * m + (1 - h.beta2) * g
    return m, m


def nesterov(h, step, g, m):
    m = g if step == 1 else h.beta1 * m + (1 - h.beta2) * g
    return g + h.beta1 * m, m


def rmsprop(h, step, g, v):  # noqa: ARG001
    """torch.optim.RMSprop: beta1 is its alpha."""
    v = h.beta1 * v + (1 - h.beta1) * g * g
    return g / (v.sqrt() + h.eps), v


def adagrad(h, step, g, v):  # noqa: ARG001
    v = v + g * g
    return g / (v.sqrt() + h.eps), v


def lion(h, step, g, m):  # noqa: ARG001
    """Chen et al. 2023, algorithm 2."""
    return (h.beta1 * m + (1 - h.beta1) * g).sign(), h.beta2 * m + (1 - h.beta2) * g


def ademamix(h, step, g, m, v):
    """Pagliardini et al. 2024, algorithm 1."""
    fast = h.beta1 * m[0] + (1 - h.beta1) * g
    slow = h.beta3 * m[1] + (1 - h.beta3) * g
    v = h.beta2 * v + (1 - h.beta2) * g * g
    fast_hat, v_hat = fast / (1 - h.beta1**step), v / (1 - h.beta2**step)
    return (fast_hat + h.alpha * slow) / (v_hat.sqrt() + h.eps), torch.stack([fast, slow]), v


RULES = {
    "adam": adam,
    "lamb": adam,
    "momentum": momentum,
    "lars": momentum,
    "nesterov": nesterov,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "lion": lion,
    "ademamix": ademamix,
}


def update(name, h, step, g, p, *states):
    """Return new parameter and states, and the norm of the update; ``h`` has the constants."""
    h = SimpleNamespace(**{"gnorm_scale": 1.0, "max_unorm": 0.0, "skip_zeros": False, **h})
    given, p, *states = (t.double() for t in (g, p, *states))
    given = given * h.gnorm_scale
    g = given if name in DECOUPLED else given + h.weight_decay * p
    direction, *new = RULES[name](h, step, g, *states)
    zero = (given == 0.0) & torch.tensor(h.skip_zeros)
    unorm, norm = direction[~zero].norm(), p.norm()
    short = h.max_unorm * norm / unorm if 0.0 < h.max_unorm * norm < unorm else 1.0
    decay = 1 - h.lr * h.weight_decay if name in DECOUPLED else 1.0
    moved = p * decay - h.lr * short * direction
    new = [torch.where(zero, old, value) for old, value in zip(states, new, strict=True)]
    return torch.where(zero, p, moved), new, unorm
