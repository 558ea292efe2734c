"""SGD with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.optim.optimizer import KbitOptimizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import Options


class SGD(KbitOptimizer, rule="momentum"):
    """SGD with momentum, its state in 4, 8 or 32 bits.

    The arithmetic is that of ``torch.optim.SGD``: the first gradient starts the average, later ones
    are dampened, and weight decay acts through the gradient.

    Parameters
    ----------
    params
        Parameters or groups of them. A group may have its own value for any setting below, and for
        ``optim_bits``, ``min_8bit_size``, ``skip_zeros`` and ``max_unorm`` too.
    lr
        Learning rate; a tensor with one element is read at each step.
    momentum
        Share of the average that is kept in each step, in [0, 1). With 0 the average is kept, but
        it is the last gradient.
    dampening
        Share of later gradients that is left out of the average, in [0, 1).
    weight_decay
        Share of the parameter that is added to the gradient.
    nesterov
        Look one step of the average ahead.
    optim_bits, args, min_8bit_size, **options
        As in :class:`Adam`.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    Notes
    -----
    In a group, ``betas`` stands for ``(momentum, dampening)``, as in bitsandbytes; both names are
    taken too. The state is ``step`` and ``state1``, with 8 bits also ``absmax1`` and ``qmap1``.

    References
    ----------
    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning",
    section 2.
    """

    _beta_names = ("momentum", "dampening")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        **options: Unpack[Options],
    ) -> None:
        betas = (self._checked("momentum", momentum), self._checked("dampening", dampening))
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": 0.0,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
            {"optim_bits": optim_bits, "min_8bit_size": min_8bit_size},
            args,
            options,
        )

    def _rule_of(self, config: dict[str, Any]) -> str:
        return "nesterov" if config["nesterov"] else "momentum"


class _FixedSGD(SGD):
    """The arguments of the numbered names: those of :class:`SGD` but ``optim_bits``."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        args: Any = None,
        min_8bit_size: int = 4096,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            args=args,
            min_8bit_size=min_8bit_size,
            **options,
        )


class SGD8bit(_FixedSGD, bits=8):
    """SGD with an 8-bit state; arguments as in :class:`SGD`, without ``optim_bits``."""


class SGD32bit(_FixedSGD, bits=32):
    """SGD with a 32-bit state; arguments as in :class:`SGD`, without ``optim_bits``."""
