"""Adagrad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.optim.optimizer import KbitOptimizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import Options


class Adagrad(KbitOptimizer, rule="adagrad"):
    """Adagrad, its state in 8 or 32 bits.

    The arithmetic is that of ``torch.optim.Adagrad``: weight decay acts through the gradient.

    Parameters
    ----------
    params
        Parameters or groups of them. A group may have its own value for any setting below, and for
        ``optim_bits``, ``min_8bit_size``, ``skip_zeros`` and ``max_unorm`` too.
    lr
        Learning rate; a tensor with one element is read at each step.
    lr_decay
        Step ``n`` of a parameter, counted from 0, has the rate ``lr / (1 + n * lr_decay)``.
    weight_decay
        Share of the parameter that is added to the gradient.
    initial_accumulator_value
        Not supported: 0.
    eps
        Added to the denominator.
    optim_bits, args, min_8bit_size, **options
        As in :class:`Adam`.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    Notes
    -----
    The state is ``step`` and ``state1``, with 8 bits also ``absmax1`` and ``qmap1``. Groups have
    ``betas``, which are not used, because those of bitsandbytes have.

    References
    ----------
    Duchi et al. 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", figure 1.
    """

    _why_not_4bit = "Each square that is added to a sum would soon be lost in rounding it."

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": (0.0, 0.0),
                "eps": eps,
                "weight_decay": weight_decay,
                "lr_decay": lr_decay,
            },
            {
                "initial_accumulator_value": initial_accumulator_value,
                "optim_bits": optim_bits,
                "min_8bit_size": min_8bit_size,
            },
            args,
            options,
        )

    def _hyperparameters(self, config: dict[str, Any], step: Any) -> tuple[Any, ...]:
        lr, *others = super()._hyperparameters(config, step)
        return lr / (1.0 + (step - 1) * float(config["lr_decay"])), *others


class Adagrad8bit(Adagrad, bits=8):
    """Adagrad with an 8-bit state; the arguments are those of :class:`Adagrad`."""


class Adagrad32bit(Adagrad, bits=32):
    """Adagrad with a 32-bit state; the arguments are those of :class:`Adagrad`."""
