"""LARS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch

from bnbx.optim.extras import refuse_sparse
from bnbx.optim.settings import checked
from bnbx.optim.sgd import SGD

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import CommonOptions


class LARS(SGD):
    """LARS, its state in 4, 8 or 32 bits: :class:`SGD` whose updates are bounded layer by layer.

    As in bitsandbytes, an update is only ever shortened: where the norm of the average, which is
    the update without ``lr``, is above ``max_unorm`` times the norm of the parameter, it is scaled
    down to that. A parameter of zeros is not bounded.

    Parameters
    ----------
    params, lr, momentum, dampening, weight_decay, nesterov, optim_bits, args, min_8bit_size
        As in :class:`SGD`.
    max_unorm
        The bound, as a share of the parameter's norm; 0 for none. It needs whole parameters: those
        that are sharded over processes as DTensors are refused.
    **options
        As in :class:`Adam`.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.

    References
    ----------
    You et al. 2017, "Large Batch Training of Convolutional Networks", algorithm 1.
    """

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
        max_unorm: float = 0.02,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            optim_bits,
            args,
            min_8bit_size,
            max_unorm=max_unorm,
            **options,
        )


class _FixedLARS(LARS):
    """The arguments of the numbered names: those of :class:`LARS` but ``optim_bits``."""

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
        max_unorm: float = 0.02,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            32,
            args,
            min_8bit_size,
            max_unorm,
            **options,
        )


class LARS8bit(_FixedLARS, bits=8):
    """LARS with an 8-bit state; arguments as in :class:`LARS`, without ``optim_bits``."""


class LARS32bit(_FixedLARS, bits=32):
    """LARS with a 32-bit state; arguments as in :class:`LARS`, without ``optim_bits``."""


class PytorchLARS(torch.optim.Optimizer):
    """LARS in plain PyTorch, for parameters of any floating dtype, with nothing quantized.

    The arithmetic and the arguments are those of :class:`LARS`; the state is ``momentum_buffer``,
    as in ``torch.optim.SGD``.

    Parameters
    ----------
    params
        Parameters or groups of them. A group may have its own value for any setting below.
    lr
        Learning rate.
    momentum, dampening, weight_decay, nesterov, max_unorm
        As in :class:`LARS`.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        max_unorm: float = 0.02,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "max_unorm": max_unorm,
        }
        super().__init__(params, {key: checked(key, value) for key, value in defaults.items()})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which may have its own value for any setting.

        Raises
        ------
        ValueError
            If a setting has a value that is not supported.
        """
        where = f"param_groups[{len(self.param_groups)}]."
        group = {key: checked(key, value, where) for key, value in param_group.items()}
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; return what the closure returned.

        Raises
        ------
        ValueError
            If a gradient is sparse. Nothing is updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [
            (f"param_groups[{i}]['params'][{j}].grad", p, p.grad, group)
            for i, group in enumerate(self.param_groups)
            for j, p in enumerate(group["params"])
            if p.grad is not None
        ]
        for where, _, gradient, _ in trained:
            refuse_sparse(where, gradient)
        for _, p, gradient, group in trained:
            self._move(p, gradient, group)
        return loss

    def _move(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient + group["weight_decay"] * p
        state = self.state[p]
        average = state.get("momentum_buffer")
        if average is None:
            average = state["momentum_buffer"] = gradient.clone()
        else:
            average.mul_(group["momentum"]).add_(gradient * (1.0 - group["dampening"]))
        update = gradient + group["momentum"] * average if group["nesterov"] else average
        unorm, limit = update.norm(), group["max_unorm"] * p.norm()
        shorten = (limit > 0.0) & (unorm > limit)
        p.sub_(group["lr"] * update * torch.where(shorten, limit / unorm, 1.0))
