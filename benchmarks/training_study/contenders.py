"""The optimizers that train the model, and their settings."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import bnbx

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Family:
    """What the optimizers of one rule share, so that they differ by their states alone.

    Attributes
    ----------
    name
        Of the rule.
    lr
        The peak of the learning rate: the best of ``rates`` in the sweep.
    rates
        What the sweep tries.
    weight_decay
        Of matrices; norms have none.
    settings
        Other arguments, from the number of steps.
    """

    name: str
    lr: float
    rates: tuple[float, ...]
    weight_decay: float
    settings: Callable[[int], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One optimizer.

    Attributes
    ----------
    name
        Of the class, after that of the library if it is not bnbx.
    family
        Its rule.
    bits
        Of an element of a state.
    states
        How many states of the parameter's shape it keeps.
    """

    name: str
    family: Family
    bits: int
    states: int

    @property
    def factory(self) -> Callable[..., torch.optim.Optimizer] | None:
        """The class; None if this version of bnbx lacks it."""
        if self.name == "torch AdamW":
            return torch.optim.AdamW
        return getattr(bnbx.optim, self.name, None)

    def make(self, model: nn.Module, steps: int, lr: float | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of a model that is trained for ``steps``."""
        parameters = list(model.parameters())
        groups = [
            {"params": matrices(model), "weight_decay": self.family.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        assert self.factory is not None, f"{self.name}: not in this version of bnbx"  # noqa: S101
        return self.factory(groups, lr=lr or self.family.lr, **self.family.settings(steps))

    def check(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Stop unless the states of every matrix have the bits that the contender stands for."""
        for p in matrices(model):
            state = optimizer.state[p]
            moments = [t for key, t in state.items() if key.startswith(("state", "exp_avg"))]
            bits = 8 * sum(t.numel() * t.element_size() for t in moments)
            if bits != self.states * self.bits * p.numel():
                got = f"{bits / p.numel():g} bits per element of a parameter {tuple(p.shape)}"
                raise SystemExit(f"{self.name}: expected {self.states} x {self.bits}, got {got}")


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that have quantized states and weight decay."""
    return [p for p in model.parameters() if p.ndim >= 2]


# The second moment's rate is that of small models and few steps; the others are the defaults.
ADAMW = Family("AdamW", 1e-3, (5e-4, 1e-3, 2e-3, 4e-3), 0.1, lambda _: {"betas": (0.9, 0.99)})
# Chen et al. 2023, section 5: a rate 3 to 10 times smaller than AdamW's, decay as much larger.
LION = Family("Lion", 4e-4, (1e-4, 2e-4, 4e-4, 8e-4), 1.0, lambda _: {"betas": (0.9, 0.99)})
# The slow average's half-life is a sixth of the run, and both schedules last as long as it, as in
# Pagliardini et al. 2024, section 3.
ADEMAMIX = Family(
    "AdEMAMix",
    5e-4,
    (2.5e-4, 5e-4, 1e-3, 2e-3),
    0.1,
    lambda steps: {
        "betas": (0.9, 0.99, 0.5 ** (6 / steps)),
        "alpha": 5.0,
        "t_alpha": steps,
        "t_beta3": steps,
    },
)

#: The first of a family has 32-bit states: the others are compared with it.
CONTENDERS = (
    Contender("torch AdamW", ADAMW, bits=32, states=2),
    Contender("AdamW8bit", ADAMW, bits=8, states=2),
    Contender("AdamW4bit", ADAMW, bits=4, states=2),
    Contender("Lion32bit", LION, bits=32, states=1),
    Contender("Lion8bit", LION, bits=8, states=1),
    Contender("AdEMAMix32bit", ADEMAMIX, bits=32, states=3),
    Contender("AdEMAMix8bit", ADEMAMIX, bits=8, states=3),
)


def baseline(contender: Contender) -> Contender:
    """Return the contender of the same family with 32-bit states."""
    return next(other for other in CONTENDERS if other.family is contender.family)
