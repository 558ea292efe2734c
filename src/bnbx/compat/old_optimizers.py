"""Bases of other people's optimizers, GaLore's and APOLLO's for two: one parameter at a time.

bnbx's own optimizers update lists of parameters in one call and are not derived from these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from bnbx.ops import OPTIMIZERS, RULES, error
from bnbx.optim.manager import GlobalOptimManager
from bnbx.optim.optimizer import KbitOptimizer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT


class OptimizerByName(KbitOptimizer):
    """An optimizer whose rule is an argument, with the steps that a derived ``step`` is made of.

    Parameters
    ----------
    optimizer_name
        Name of the rule; which ones there are depends on the class.
    params, lr, betas and all others
        As in :class:`bnbx.optim.Adam`; for ``momentum``, ``betas`` are momentum and dampening.

    Raises
    ------
    ValueError
        If the rule is not one of the class, or an argument has a value that is not supported.
    """

    #: How many states the rules of the class keep.
    _count: ClassVar[int]

    def __init__(
        self,
        optimizer_name: str,
        params: ParamsT,
        lr: float | Tensor,
        betas: tuple[float, float] | str,
        eps: float,
        weight_decay: float,
        optim_bits: int,
        args: Any,
        min_8bit_size: int,
        max_unorm: float,
        skip_zeros: bool,
        is_paged: bool,
    ) -> None:
        # AdEMAMix has three betas and schedules, which its own class knows.
        rules = {name: rule for name, rule in OPTIMIZERS.items() if rule != "ademamix"}
        names = [name for name, rule in rules.items() if len(RULES[rule]) == self._count]
        if optimizer_name not in names:
            raise error("optimizer_name", f"one of {names}", repr(optimizer_name))
        self.optimizer_name = optimizer_name
        self._rule = rules[optimizer_name]  # type: ignore[misc] # of the class elsewhere
        self._kept = RULES[self._rule]  # type: ignore[misc]
        self.initialized = False
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
            {
                "optim_bits": optim_bits,
                "min_8bit_size": min_8bit_size,
                "max_unorm": max_unorm,
                "skip_zeros": skip_zeros,
                "is_paged": is_paged,
            },
            args,
            {},
        )

    @property
    def is_paged(self) -> bool:
        """Whether the states are paged."""
        return bool(self.args.is_paged)

    def check_overrides(self) -> None:
        """Do nothing: overrides of settings are looked up at each step."""

    def to_gpu(self) -> None:
        """Put loaded states where their parameters are."""
        self._place_states()

    def prefetch_state(self, p: Tensor) -> None:
        """Do nothing: a step fetches paged states before it uses them."""

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a parameter: its group's, with overrides.

        Parameters
        ----------
        gindex, pindex
            Numbers of the group and of the parameter in it.
        group
            The group.
        """
        overrides = GlobalOptimManager.get_instance().overrides()
        own = overrides.get(id(self.param_groups[gindex]["params"][pindex]), {})
        shared = {key: value for key, value in group.items() if key != "params"}
        return {**vars(self.args), **shared, **own}

    def init_state(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Make the state of a parameter as it is before its first step.

        Parameters
        ----------
        group, p, gindex, pindex
            The parameter, with its group and the numbers of both.
        """
        config = self.get_config(gindex, pindex, group)
        self.state[p].update(self._new_state(p, config))

    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Update a parameter, whose state has been made, with its gradient.

        Parameters
        ----------
        group, p, gindex, pindex
            The parameter, with its group and the numbers of both.

        Raises
        ------
        ValueError
            If there is no gradient, or one that is sparse.
        """
        if p.grad is None:
            where = f"param_groups[{gindex}]['params'][{pindex}].grad"
            raise error(where, "a tensor", None)
        groups = self.param_groups
        self.param_groups = [{**group, "params": [p]}]
        try:
            KbitOptimizer.step(self)  # that of the derived class has called this
        finally:
            self.param_groups = groups


class Optimizer1State(OptimizerByName):
    """An optimizer by ``"momentum"``, ``"lion"``, ``"rmsprop"``, ``"adagrad"``...: one state."""

    _count = 1

    def __init__(
        self,
        optimizer_name: str,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | str = (0.9, 0.0),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        is_paged: bool = False,
    ) -> None:
        super().__init__(
            *(optimizer_name, params, lr, betas, eps, weight_decay, optim_bits, args),
            *(min_8bit_size, max_unorm, skip_zeros, is_paged),
        )


class Optimizer2State(OptimizerByName):
    """An optimizer by ``"adam"`` or ``"lamb"``, which keep two states."""

    _count = 2

    def __init__(
        self,
        optimizer_name: str,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | str = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        is_paged: bool = False,
    ) -> None:
        super().__init__(
            *(optimizer_name, params, lr, betas, eps, weight_decay, optim_bits, args),
            *(min_8bit_size, max_unorm, skip_zeros, is_paged),
        )
