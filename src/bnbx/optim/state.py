"""The state of one parameter: which tensors it has, and making them.

The layout is that of bitsandbytes: ``step``; ``state1`` and, if the rule has a second one,
``state2``, uint8 or float32 of the parameter's shape; for uint8 also ``absmax1``..., one float32
per block, and ``qmap1``..., the values of the 256 codes. Both averages of AdEMAMix are in
``state1``, whose shape has a 2 in front. With a ``max_unorm`` there is ``unorm_vec``, the norm of
the last update.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.codebooks import create_dynamic_map
from bnbx.ops import OPTIMIZER_BLOCKSIZE, blocks_of, state_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bnbx.ops import OptimizerState

#: Entry of a saved parameter state that holds its tensors. FSDP gathers tensors that it finds one
#: level up as if they had the shape of the parameter.
WRAPPER = "__bnb_optimizer_quant_state__"

#: Type of a state by its number of bits.
STATE_DTYPES = {8: torch.uint8, 32: torch.float32}

TensorSpec = tuple[torch.dtype, tuple[int, ...]]


class QuantizationMaps:
    """The maps that the states of one optimizer use: one tensor for each content and device.

    Parameters can be updated in one call if they share their maps, and sharing is seen by identity.
    """

    def __init__(self) -> None:
        self._dynamic: dict[tuple[bool, torch.device], Tensor] = {}
        self._shared: list[Tensor] = []

    def dynamic(self, signed: bool, device: torch.device) -> Tensor:
        """Return the dynamic map, the one that new states get."""
        key = (signed, device)
        if key not in self._dynamic:
            self._dynamic[key] = self.share(create_dynamic_map(signed).to(device))
        return self._dynamic[key]

    def share(self, qmap: Tensor) -> Tensor:
        """Return the tensor that stands for all maps equal to ``qmap`` on its device."""
        for known in self._shared:
            if known is qmap:
                return known
            if known.device == qmap.device and not qmap.is_meta and torch.equal(known, qmap):
                return known
        self._shared.append(qmap)
        return qmap


def local(tensor: Tensor) -> Tensor:
    """Return the shard of a DTensor that lies in this process; any other tensor is its own.

    States are kept and quantized shard by shard, so that a step communicates nothing.
    """
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def tensor_specs(
    shape: Sequence[int], dtype: torch.dtype, states: Sequence[OptimizerState]
) -> dict[str, TensorSpec]:
    """Return dtype and shape of each tensor in a parameter's state, whose states have ``dtype``."""
    specs: dict[str, TensorSpec] = {}
    for number, (_, stacked) in enumerate(states, 1):
        specs[f"state{number}"] = (dtype, state_shape(shape, stacked))
        if dtype == torch.uint8:
            blocks = blocks_of(math.prod(shape), OPTIMIZER_BLOCKSIZE)
            specs[f"absmax{number}"] = (torch.float32, state_shape((blocks,), stacked))
            specs[f"qmap{number}"] = (torch.float32, (256,))
    return specs


def new_state(
    p: Tensor,
    dtype: torch.dtype,
    states: Sequence[OptimizerState],
    maps: QuantizationMaps,
    zeros: Callable[..., Tensor] = torch.zeros,
) -> dict[str, Any]:
    """Return the state of a parameter before its first step, its tensors made by ``zeros``."""
    state: dict[str, Any] = {"step": 0}
    for key, (kind, shape) in tensor_specs(local(p).shape, dtype, states).items():
        state[key] = zeros(shape, dtype=kind, device=p.device)
    if dtype == torch.uint8:
        for number, (signed, _) in enumerate(states, 1):
            state[f"qmap{number}"] = maps.dynamic(signed, p.device)
    return state


def wrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with its tensors moved into ``WRAPPER``."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    others = {key: value for key, value in state.items() if key not in tensors}
    return {**others, WRAPPER: tensors} if tensors else others
