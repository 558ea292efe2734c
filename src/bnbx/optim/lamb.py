"""LAMB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.optim.adam import Adam

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import CommonOptions


class LAMB(Adam):
    """LAMB with states of 4, 8 or 32 bits: :class:`Adam` whose updates are bounded layer by layer.

    As in bitsandbytes, an update is only ever shortened, and weight decay is not part of it: where
    the norm of the update, without ``lr``, is above ``max_unorm`` times the norm of the parameter,
    it is scaled down to that. A parameter of zeros is not bounded.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, optim_bits, args, min_8bit_size, **options
        As in :class:`Adam`.
    bias_correction, adam_w_mode
        Not supported otherwise than True.
    max_unorm
        The bound, as a share of the parameter's norm; 0 for none. It needs whole parameters: those
        that are sharded over processes as DTensors are refused.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    References
    ----------
    You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] | str = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        adam_w_mode: bool = True,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        max_unorm: float = 1.0,
        **options: Unpack[CommonOptions],
    ) -> None:
        self._checked("bias_correction", bias_correction)
        self._checked("adam_w_mode", adam_w_mode)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            optim_bits,
            args,
            min_8bit_size,
            max_unorm=max_unorm,
            **options,
        )


class _FixedLAMB(LAMB):
    """The arguments of the numbered names: those of :class:`LAMB` but ``optim_bits``."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] | str = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        adam_w_mode: bool = True,
        args: Any = None,
        min_8bit_size: int = 4096,
        max_unorm: float = 1.0,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            bias_correction,
            betas,
            eps,
            weight_decay,
            amsgrad,
            adam_w_mode,
            32,
            args,
            min_8bit_size,
            max_unorm,
            **options,
        )


class LAMB8bit(_FixedLAMB, bits=8):
    """LAMB with 8-bit states; arguments as in :class:`LAMB`, without ``optim_bits``."""


class LAMB32bit(_FixedLAMB, bits=32):
    """LAMB with 32-bit states; arguments as in :class:`LAMB`, without ``optim_bits``."""
