"""Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.optim.optimizer import KbitOptimizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import Options


class Lion(KbitOptimizer, rule="lion"):
    """Lion, its state in 4, 8 or 32 bits.

    Parameters
    ----------
    params
        Parameters or groups of them. A group may have its own value for any setting below, and for
        ``optim_bits``, ``min_8bit_size``, ``skip_zeros`` and ``max_unorm`` too.
    lr
        Learning rate, the length of every step; a tensor with one element is read at each step.
    betas
        Shares of the average in the direction of the step, and in the next average, in [0, 1).
    weight_decay
        Share of the parameter, times ``lr``, that is taken away in each step.
    optim_bits, args, min_8bit_size, is_paged, **options
        As in :class:`Adam`.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    Notes
    -----
    The state is ``step`` and ``state1``, with 8 bits also ``absmax1`` and ``qmap1``. Where the
    direction is NaN the parameter becomes NaN.

    References
    ----------
    Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] | str = (0.9, 0.99),
        weight_decay: float = 0.0,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": 0.0, "weight_decay": weight_decay},
            {"optim_bits": optim_bits, "min_8bit_size": min_8bit_size, "is_paged": is_paged},
            args,
            options,
        )


class _FixedLion(Lion):
    """The arguments of the numbered names: those of :class:`Lion` but ``optim_bits``."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] | str = (0.9, 0.99),
        weight_decay: float = 0.0,
        args: Any = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, lr, betas, weight_decay, 32, args, min_8bit_size, is_paged, **options
        )


class Lion8bit(_FixedLion, bits=8):
    """Lion with an 8-bit state; arguments as in :class:`Lion`, without ``optim_bits``."""


class Lion32bit(_FixedLion, bits=32):
    """Lion with a 32-bit state; arguments as in :class:`Lion`, without ``optim_bits``."""


class PagedLion(Lion, paged=True):
    """Lion with a paged state; the arguments are those of :class:`Lion`."""


class PagedLion8bit(_FixedLion, bits=8, paged=True):
    """Lion with a paged 8-bit state; arguments as in :class:`Lion`, without ``optim_bits``."""


class PagedLion32bit(_FixedLion, bits=32, paged=True):
    """Lion with a paged 32-bit state; arguments as in :class:`Lion`, without ``optim_bits``."""
