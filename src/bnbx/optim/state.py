"""The state of one parameter: which tensors it has, and making them.

The layout is that of bitsandbytes: ``step``; ``state1`` and, if the rule has a second one,
``state2``, uint8 or float32 of the parameter's shape; for uint8 also ``absmax1``..., one float32
per block, and ``qmap1``..., the values of the 256 codes. Both averages of AdEMAMix are in
``state1``, whose shape has a 2 in front. States of 4 bits, which bitsandbytes has not, are packed:
uint8 of one byte per two elements, flat, and the maps have 16 values. A bfloat16 parameter with
``kahan_sum`` has ``compensation``, bfloat16 of its shape, and with ``bf16_stochastic_round`` an int
``seed``. With a ``max_unorm`` there is ``unorm_vec``, the norm of
the last update.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.codebooks import create_dynamic_map, create_optimizer_map_4bit
from bnbx.ops import OPTIMIZER_BLOCKSIZES, blocks_of, codes_shape, state_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bnbx.ops import OptimizerState

#: Entry of a saved parameter state that holds its tensors. FSDP gathers tensors that it finds one
#: level up as if they had the shape of the parameter.
WRAPPER = "__bnb_optimizer_quant_state__"

TensorSpec = tuple[torch.dtype, tuple[int, ...]]


class QuantizationMaps:
    """The maps that the states of one optimizer use: one tensor for each content and device.

    Parameters can be updated in one call if they share their maps, and sharing is seen by identity.
    """

    def __init__(self) -> None:
        self._new: dict[tuple[int, bool, torch.device], Tensor] = {}
        self._shared: list[Tensor] = []

    def of_new(self, bits: int, signed: bool, device: torch.device) -> Tensor:
        """Return the map that new states get."""
        key = (bits, signed, device)
        if key not in self._new:
            create = create_optimizer_map_4bit if bits == 4 else create_dynamic_map
            self._new[key] = self.share(create(signed).to(device))
        return self._new[key]

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


def locals_of(tensors: list[Tensor]) -> list[Tensor]:
    """Return what ``local`` makes of each; the list itself if there is no DTensor in it."""
    if any(hasattr(kind, "to_local") for kind in set(map(type, tensors))):
        return [local(tensor) for tensor in tensors]
    return tensors


def tensor_specs(
    shape: Sequence[int], bits: int, states: Sequence[OptimizerState]
) -> dict[str, TensorSpec]:
    """Return dtype and shape of each tensor in a parameter's state, whose states have ``bits``."""
    dtype = torch.float32 if bits == 32 else torch.uint8
    specs: dict[str, TensorSpec] = {}
    for number, (_, stacked) in enumerate(states, 1):
        specs[f"state{number}"] = (dtype, state_shape(codes_shape(shape, bits), stacked))
        if bits < 32:
            blocks = blocks_of(math.prod(shape), OPTIMIZER_BLOCKSIZES[bits])
            specs[f"absmax{number}"] = (torch.float32, state_shape((blocks,), stacked))
            specs[f"qmap{number}"] = (torch.float32, (2**bits,))
    return specs


def bits_of(state: dict[str, Any], shape: Sequence[int]) -> int:
    """Return the number of bits of the states of a parameter of that shape.

    Of a state that is malformed, what it is most likely meant to have.
    """
    first, qmap = state.get("state1"), state.get("qmap1")
    if not isinstance(first, Tensor) or first.dtype != torch.uint8:
        return 32
    if isinstance(qmap, Tensor):
        return 4 if qmap.numel() <= 16 else 8
    return 4 if first.shape[-1:] == codes_shape(shape, 4) else 8


def new_state(
    p: Tensor,
    bits: int,
    states: Sequence[OptimizerState],
    maps: QuantizationMaps,
    zeros: Callable[..., Tensor] = torch.zeros,
) -> dict[str, Any]:
    """Return the state of a parameter before its first step, its tensors made by ``zeros``."""
    state: dict[str, Any] = {"step": 0}
    for key, (kind, shape) in tensor_specs(local(p).shape, bits, states).items():
        state[key] = zeros(shape, dtype=kind, device=p.device)
    if bits < 32:
        for number, (signed, _) in enumerate(states, 1):
            state[f"qmap{number}"] = maps.of_new(bits, signed, p.device)
    return state


def wrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with its tensors moved into ``WRAPPER``."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    others = {key: value for key, value in state.items() if key not in tensors}
    return {**others, WRAPPER: tensors} if tensors else others
