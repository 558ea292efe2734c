"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.ops import error
from bnbx.optim.optimizer import KbitOptimizer
from bnbx.optim.settings import checked_share

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import Options


class RMSprop(KbitOptimizer, rule="rmsprop"):
    """RMSprop, its state in 4, 8 or 32 bits.

    The arithmetic is that of ``torch.optim.RMSprop``: ``eps`` is added to the root, and weight
    decay acts through the gradient.

    Parameters
    ----------
    params
        Parameters or groups of them. A group may have its own value for any setting below, and for
        ``optim_bits``, ``min_8bit_size``, ``skip_zeros`` and ``max_unorm`` too.
    lr
        Learning rate; a tensor with one element is read at each step.
    alpha
        Decay rate of the average of squared gradients, in [0, 1).
    eps
        Added to the denominator.
    weight_decay
        Share of the parameter that is added to the gradient.
    momentum, centered
        Not supported: 0 and False.
    optim_bits, args, min_8bit_size, **options
        As in :class:`Adam`.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    Notes
    -----
    In a group, ``betas`` stands for ``(alpha, momentum)``, as in bitsandbytes, and the second is
    not used; the name ``alpha`` is taken too. The state is ``step`` and ``state1``, with 8 bits
    also ``absmax1`` and ``qmap1``.

    References
    ----------
    Tieleman & Hinton 2012, "Neural Networks for Machine Learning", lecture 6.5.
    """

    _beta_names = ("alpha",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        **options: Unpack[Options],
    ) -> None:
        betas = (checked_share("alpha", alpha), self._checked("momentum", momentum))
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
            {"centered": centered, "optim_bits": optim_bits, "min_8bit_size": min_8bit_size},
            args,
            options,
        )

    @classmethod
    def _checked(cls, key: str, value: Any, where: str = "") -> Any:
        if key == "momentum" and value != 0:
            raise error(f"{where}momentum", "0, the only value supported so far", repr(value))
        return super()._checked(key, value, where)


class _FixedRMSprop(RMSprop):
    """The arguments of the numbered names: those of :class:`RMSprop` but ``optim_bits``."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        args: Any = None,
        min_8bit_size: int = 4096,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            lr,
            alpha,
            eps,
            weight_decay,
            momentum,
            centered,
            args=args,
            min_8bit_size=min_8bit_size,
            **options,
        )


class RMSprop8bit(_FixedRMSprop, bits=8):
    """RMSprop with an 8-bit state; arguments as in :class:`RMSprop`, without ``optim_bits``."""


class RMSprop32bit(_FixedRMSprop, bits=32):
    """RMSprop with a 32-bit state; arguments as in :class:`RMSprop`, without ``optim_bits``."""
