"""Adam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.optim.optimizer import KbitOptimizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import Options


class Adam(KbitOptimizer, rule="adam"):
    """Adam with states of 4, 8 or 32 bits.

    Weight decay is decoupled: it acts on the parameter and not through the gradient, as in AdamW
    and in the Adam of bitsandbytes. ``torch.optim.Adam`` differs when ``weight_decay`` is not 0.

    Parameters
    ----------
    params
        Parameters or groups of them. A group may have its own value for any setting below, and for
        ``optim_bits``, ``min_8bit_size``, ``skip_zeros`` and ``max_unorm`` too.
    lr
        Learning rate; a tensor with one element is read at each step.
    betas
        Decay rates of the two moments, in [0, 1). A string such as ``"(0.9, 0.999)"`` is parsed.
    eps
        Added to the denominator.
    weight_decay
        Share of the parameter, times ``lr``, that is taken away in each step.
    amsgrad
        Not supported: False.
    optim_bits
        4, 8 or 32. The classes with a number in their name take only the default and use theirs.
    args
        An object whose attributes ``optim_bits``, ``min_8bit_size``, ``skip_zeros``, ``max_unorm``
        go before the arguments of the same name.
    min_8bit_size
        Parameters with fewer elements get 32-bit states.
    is_paged
        Whether states may be moved out of memory. Those of parameters on a CPU are then kept in
        files if there is a ``paging``, and in memory if there is none; elsewhere it is refused.
    **options
        ``skip_zeros=True`` leaves parameter and state alone where the gradient is exactly 0.
        ``maximize=True`` goes up the gradient. ``max_unorm`` above 0 shortens an update whose norm,
        without ``lr``, is above that share of the parameter's norm; a parameter of zeros is free.
        ``percentile_clipping`` below 100 shortens a gradient whose norm is above that percentile of
        the parameter's last 100; see :func:`bnbx.functional.percentile_clipping`. ``paging``, a
        :class:`~bnbx.optim.PagedMemory`, says in which directory the files of paged states are, and
        makes the optimizer a paged one. ``block_wise`` is taken for programs written for old
        releases of bitsandbytes and must be True.
        ``capturable=True`` lets a CUDA graph capture the step: the kernels then read the step count
        from tensors, and a rate that is to change has to be a tensor on the parameters' device;
        percentile clipping and random rounding are refused.
        ``bf16_stochastic_round=True`` rounds parameters of bfloat16 up or down at random, with the
        probability that makes the mean exact; ``kahan_sum=True`` keeps what rounding them loses in
        a second bfloat16. Parameters of other dtypes are rounded as ever; one of both at a time.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    Notes
    -----
    The state of a parameter is ``step``, ``state1`` and ``state2`` (the two moments, of the
    parameter's shape, uint8 or float32) and with 8 bits ``absmax1``, ``absmax2`` (float32, one per
    256 elements) and the maps ``qmap1``, ``qmap2`` (float32, 256 entries). With 4 bits the states
    are packed, two elements a byte, there is a scale per 128 elements and a map has 16 entries.
    With a ``max_unorm`` it has ``unorm_vec``, the norm of the last update before it was shortened.
    A parameter of bfloat16 has ``compensation``, bfloat16 of its shape, with ``kahan_sum``, and an
    int ``seed``, drawn from torch's generator, with ``bf16_stochastic_round``.

    References
    ----------
    Kingma & Ba 2015, "Adam", algorithm 1; Dettmers et al. 2022, "8-bit Optimizers via Block-wise
    Quantization", section 2; Li, Chen & Zhu 2023, "Memory Efficient Optimizers with 4-bit States".
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | str = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
            {
                "amsgrad": amsgrad,
                "optim_bits": optim_bits,
                "min_8bit_size": min_8bit_size,
                "is_paged": is_paged,
            },
            args,
            options,
        )


class Adam4bit(Adam, bits=4):
    """Adam with 4-bit states; the arguments are those of :class:`Adam`."""


class Adam8bit(Adam, bits=8):
    """Adam with 8-bit states; the arguments are those of :class:`Adam`."""


class Adam32bit(Adam, bits=32):
    """Adam with 32-bit states; the arguments are those of :class:`Adam`."""


class PagedAdam(Adam, paged=True):
    """Adam with paged states; the arguments are those of :class:`Adam`."""


class PagedAdam4bit(Adam, bits=4, paged=True):
    """Adam with paged 4-bit states; the arguments are those of :class:`Adam`."""


class PagedAdam8bit(Adam, bits=8, paged=True):
    """Adam with paged 8-bit states; the arguments are those of :class:`Adam`."""


class PagedAdam32bit(Adam, bits=32, paged=True):
    """Adam with paged 32-bit states; the arguments are those of :class:`Adam`."""
