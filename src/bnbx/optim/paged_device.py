"""Optimizer states in memory that a GPU shares with the CPU, so that they need not fit onto it.

A step moves them in turns: while the kernels update one turn, a stream beside theirs fetches the
next. Events keep the order, so the host waits for nothing. The numbers do not depend on any of it:
pages that a kernel touches too early are fetched then.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends.paged_memory import PAGED_DEVICES
from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bnbx.optim.paging import PagedMemory

#: Smaller tensors stay on the GPU, which moves pages of this size or larger ones.
SMALLEST_BYTES = 64 << 10
#: States updated in one call when the memory for them is not bounded: enough to fetch while the
#: kernels are busy, and more than what starting a call costs.
_TURN_BYTES = 256 << 20

_Turn = tuple[int, int, list[Any]]  # begin and end of a slice of the states, and their blocks


class DevicePages:
    """The paged states of one optimizer on one GPU."""

    def __init__(self, memory: PagedMemory | None, device: torch.device) -> None:
        self._memory = memory
        self._device = device
        self._gpu = PAGED_DEVICES[device.type]
        self._blocks: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._side: Any = None

    @property
    def _bound(self) -> int | None:
        return None if self._memory is None else self._memory.resident_bytes

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of zeros in paged memory, or on the GPU if it is small.

        Raises
        ------
        ValueError
            If the budget or main memory does not have the space.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST_BYTES:
            return torch.zeros(shape, dtype=dtype, device=self._device)
        if self._memory is not None:
            self._memory.check_budget(nbytes)
        block, content = self._gpu.allocate(nbytes, self._device)
        self._blocks[block.address] = block
        if self._memory is not None:
            self._memory.add(block)
        if block.managed:  # at once, and not with a fault for each page
            current = self._gpu.current_stream(self._device)
            self._gpu.move([block], self._device, current, to_device=True)
        content.zero_()
        if self._bound is not None:
            self._give_back([block])
        return content.view(dtype).view(shape)

    def has(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in a block of this optimizer."""
        return tensor.data_ptr() in self._blocks

    def turns(self, states: list[dict[str, Any]]) -> Iterator[tuple[int, int]]:
        """Yield which of the ``states`` to update next, as begin and end of a slice.

        The states of a turn are on the GPU, or on their way with the current stream waiting, when
        it is yielded. With ``resident_bytes`` they go back to main memory behind its kernels;
        otherwise they stay until the driver needs the space.

        Raises
        ------
        ValueError
            If a graph is being captured, which cannot move pages, and ``resident_bytes`` is set.
        """
        if not self._blocks or self._gpu.is_capturing():
            if self._blocks and self._bound is not None:
                hint = "Replays fetch the pages that they touch."
                raise error("resident_bytes", "None for a step in a graph", self._bound, hint)
            yield 0, len(states)
            return
        # Two turns are on the GPU at a time: one being updated, one being fetched.
        turns = self._turns(states, _TURN_BYTES if self._bound is None else self._bound // 2)
        arrived = self._fetch(turns[0])
        for (start, stop, blocks), following in zip(turns, [*turns[1:], None], strict=True):
            waits_for, arrived = arrived, following and self._fetch(following)
            if waits_for is not None:
                self._gpu.current_stream(self._device).wait_event(waits_for)
            yield start, stop
            if self._bound is not None:
                self._give_back(blocks)

    def _turns(self, states: list[dict[str, Any]], limit: int) -> list[_Turn]:
        """Divide ``states`` so that each part has at most ``limit`` paged bytes, or one state."""
        turns: list[_Turn] = [(0, 0, [])]
        nbytes = 0
        for number, state in enumerate(states):
            tensors = [value for value in state.values() if isinstance(value, Tensor)]
            own = [b for t in tensors if (b := self._blocks.get(t.data_ptr())) and b.managed]
            more = sum(block.used for block in own)
            start, _, blocks = turns[-1]
            if number > start and nbytes + more > limit:
                turns.append((number, number + 1, own))
                nbytes = more
            else:
                turns[-1] = start, number + 1, [*blocks, *own]
                nbytes += more
        return turns

    def _fetch(self, turn: _Turn) -> Any:
        """Queue that the blocks of a turn come; return an event for it, if there are any."""
        _, _, blocks = turn
        if not blocks:
            return None
        side = self._side_stream()
        self._gpu.move(blocks, self._device, side, to_device=True)
        return side.record_event()

    def _give_back(self, blocks: list[Any]) -> None:
        """Queue that blocks go to main memory when what has been queued until now is done."""
        managed = [block for block in blocks if block.managed]
        if managed:
            side = self._side_stream()
            side.wait_event(self._gpu.current_stream(self._device).record_event())
            self._gpu.move(managed, self._device, side, to_device=False)

    def _side_stream(self) -> Any:
        if self._side is None:
            self._side = self._gpu.new_stream(self._device)
        return self._side
