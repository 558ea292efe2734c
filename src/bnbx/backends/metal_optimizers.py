"""The updates of optimizers on an Apple GPU: a launch for each parameter."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends.metal_launches import SIMDS, MetalLaunches
from bnbx.backends.native import DTYPES, RULE_NUMBERS
from bnbx.ops import OPTIMIZER_BLOCKSIZE, OPTIMIZER_BLOCKSIZES, OPTIMIZERS, blocks_of

if TYPE_CHECKING:
    from bnbx.ops import OptimizerUpdate

#: The numbers of bnbx::Rounding in kernels/metal/optimizer_states.h.
ROUNDINGS = {"nearest": 0, "compensated": 1, "stochastic": 2}


class MetalOptimizers(MetalLaunches):
    """The two operations of optimizers.

    The host computes the constants of a rule, as it does for a CPU: Metal has no double. Numbers
    that are live are read from where they are, and the host waits for them; torch has no float64 on
    an Apple GPU, so there they cannot be.
    """

    def optimizer_update_32bit(self, update: OptimizerUpdate, *_: Any) -> None:
        self._update(update)

    def optimizer_update_blockwise(self, update: OptimizerUpdate, *_: Any) -> None:
        self._update(update)

    def _update(self, update: OptimizerUpdate) -> None:
        update.check()
        for i, p in enumerate(update.p):
            self._update_one(update, i, p)

    def _update_one(self, update: OptimizerUpdate, i: int, p: Tensor) -> None:
        """Update one parameter: its own launches, in which nothing depends on the others."""
        rule = f"{OPTIMIZERS[update.optimizer_name]}_{update.bits}"
        step, hyperparameters = _numbers(update, i)
        numbers = self.ext.rule_constants(
            RULE_NUMBERS[update.optimizer_name], *hyperparameters, step
        )
        *_, skip_zeros, max_unorm = hyperparameters
        seed = 0 if update.seed is None else update.seed[i]
        dtypes = (DTYPES[update.g[i].dtype], DTYPES[p.dtype], _rounding(update))
        options = [p.numel(), *dtypes, seed, step, int(skip_zeros), int(max_unorm > 0.0)]
        tensors = _tensors_of(update, i, p)
        tiles = blocks_of(p.numel(), OPTIMIZER_BLOCKSIZES.get(update.bits, OPTIMIZER_BLOCKSIZE))
        groups = blocks_of(tiles, SIMDS)
        factor = p.new_empty(1, dtype=torch.float32)
        if max_unorm > 0.0:
            sums = p.new_empty(2 * max(tiles, 1), dtype=torch.float32)
            self.launch(f"measure_{rule}", groups, options, numbers, *tensors, sums)
            limits = (tiles, float(max_unorm), numbers[2], update.unorm_vec[i], factor)
            self.launch("limit_update", 1, sums, *limits)
        self.launch(f"update_{rule}", groups, options, numbers, *tensors, factor)


def _numbers(update: OptimizerUpdate, i: int) -> tuple[int, tuple[Any, ...]]:
    """Return the step and the hyperparameters; those that are live are read from the device."""
    if update.live is None:
        return update.step[i], update.hyperparameters
    step, lr, beta3, alpha, gnorm_scale = update.live[i].tolist()
    _, beta1, beta2, _, _, eps, weight_decay, _, *others = update.hyperparameters
    return int(step), (lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, *others)


def _rounding(update: OptimizerUpdate) -> int:
    if update.seed is not None:
        return ROUNDINGS["stochastic"]
    return ROUNDINGS["nearest" if update.compensation is None else "compensated"]


def _tensors_of(update: OptimizerUpdate, i: int, p: Tensor) -> list[Tensor]:
    """Return what the kernels of an update bind; for what there is not, something of its dtype."""
    one = p.new_empty(1, dtype=torch.float32)
    rest = one.to(torch.bfloat16) if update.compensation is None else update.compensation[i]
    states = [values[i] for values in update.states]
    scales = [values[i] for values in update.scales]
    maps = [qmap.contiguous() for qmap in update.qmaps if qmap is not None]
    pairs = [[*values, one, one][:2] for values in (states, scales, maps)]
    return [update.g[i].contiguous(), p, rest, *itertools.chain.from_iterable(pairs)]
