"""AdEMAMix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnbx.ops import error
from bnbx.optim.optimizer import KbitOptimizer

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import Options


class AdEMAMix(KbitOptimizer, rule="ademamix"):
    """AdEMAMix with states of 8 or 32 bits: Adam with a second, slow average of the gradient.

    Parameters
    ----------
    params
        Parameters or groups of them. A group may have its own value for any setting below, and for
        ``optim_bits``, ``min_8bit_size``, ``skip_zeros`` and ``max_unorm`` too.
    lr
        Learning rate; a tensor with one element is read at each step.
    betas
        Decay rates of the fast average, of the squared gradient and of the slow average, in [0, 1).
    alpha
        Weight of the slow average.
    t_alpha
        Steps over which ``alpha`` grows from 0 to its value; None or 0 for no schedule.
    t_beta3
        Steps over which the slow average's rate goes from ``betas[0]`` to ``betas[2]``, so that its
        half-life grows linearly; None or 0 for no schedule.
    eps
        Added to the denominator.
    weight_decay
        Share of the parameter, times ``lr``, that is taken away in each step.
    optim_bits, min_8bit_size, is_paged, **options
        As in :class:`Adam`.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    Notes
    -----
    The state is that of :class:`Adam`, but ``state1`` holds both averages and has the shape
    ``(2, *shape)``; with 8 bits ``absmax1`` is ``(2, blocks)``.

    References
    ----------
    Pagliardini et al. 2024, "The AdEMAMix Optimizer: Better, Faster, Older", algorithm 1 and
    section 3.
    """

    _beta_count = 3
    _why_not_4bit = "What a step adds to the slow average would be lost in rounding it."

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] | str = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "alpha": alpha,
                "t_alpha": t_alpha,
                "t_beta3": t_beta3,
            },
            {"optim_bits": optim_bits, "min_8bit_size": min_8bit_size, "is_paged": is_paged},
            None,
            options,
        )

    def _hyperparameters(self, config: dict[str, Any], step: Any) -> tuple[Any, ...]:
        constants = super()._hyperparameters(config, step)
        lr, beta1, beta2, beta3, alpha, *others = constants
        if config["t_alpha"]:
            alpha = _progress(step, config["t_alpha"]) * alpha
        if config["t_beta3"]:
            beta3 = _scheduled_beta3(beta1, beta3, _progress(step, config["t_beta3"]))
        return lr, beta1, beta2, beta3, alpha, *others


def _progress(step: Any, steps: int) -> Any:
    """Return the share of a schedule that is done; the step may be a tensor."""
    progress = step / steps
    return progress.clamp(max=1.0) if isinstance(step, Tensor) else min(progress, 1.0)


def _scheduled_beta3(start: float, end: float, progress: Any) -> Any:
    """Return the rate between two whose half-life is the given share of the way between theirs."""
    if start == 0.0 or end == 0.0:
        expected = "betas[0] and betas[2] above 0, because t_beta3 is set"
        raise error("betas", expected, (start, end))
    # Half-lives are proportional to -1 / log(beta).
    exponent = 1.0 / ((1.0 - progress) / math.log(start) + progress / math.log(end))
    if isinstance(exponent, Tensor):
        return exponent.exp()
    return end if progress == 1.0 else math.exp(exponent)


class _FixedAdEMAMix(AdEMAMix):
    """The arguments of the numbered names: those of :class:`AdEMAMix` but ``optim_bits``."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] | str = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            alpha,
            t_alpha,
            t_beta3,
            eps,
            weight_decay,
            32,
            min_8bit_size,
            is_paged,
            **options,
        )


class AdEMAMix8bit(_FixedAdEMAMix, bits=8):
    """AdEMAMix with 8-bit states; arguments as in :class:`AdEMAMix`, without ``optim_bits``."""


class AdEMAMix32bit(_FixedAdEMAMix, bits=32):
    """AdEMAMix with 32-bit states; arguments as in :class:`AdEMAMix`, without ``optim_bits``."""


class PagedAdEMAMix(AdEMAMix, paged=True):
    """AdEMAMix with paged states; the arguments are those of :class:`AdEMAMix`."""


class PagedAdEMAMix8bit(_FixedAdEMAMix, bits=8, paged=True):
    """AdEMAMix with paged 8-bit states; see :class:`AdEMAMix`, but no ``optim_bits``."""


class PagedAdEMAMix32bit(_FixedAdEMAMix, bits=32, paged=True):
    """AdEMAMix with paged 32-bit states; see :class:`AdEMAMix`, but no ``optim_bits``."""
