"""Runs the operations of tests that know nothing of it on another device.

The tests hand tensors of the CPU to the operations and compare what comes back with the reference
on the CPU. Inside ``OnDevice`` the operations of bnbx get copies on the device, and what they
return and write comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from collections.abc import Sequence


#: The bytes of a storage, and those of its copy on the device, by the storage.
Copies = dict[int, tuple[Tensor, Tensor]]


class OnDevice(TorchDispatchMode):
    """While it is entered, the operations of bnbx run on ``device`` with tensors of the CPU."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        #: How many operations there were.
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "bnbx":
            return func(*args, **kwargs)
        self.calls += 1
        copies: Copies = {}

        def there(tensor: Tensor) -> Tensor:
            return self._copy(tensor, copies)

        args, kwargs = tree_map_only(Tensor, there, (tuple(args), kwargs))
        result = tree_map_only(Tensor, Tensor.cpu, func(*args, **kwargs))
        for original, copy in copies.values():
            original.copy_(copy)
        return result

    def _copy(self, tensor: Tensor, copies: Copies) -> Tensor:
        """Return a tensor on the device that lies in a copy of the whole storage.

        So it has the strides and the alignment of the original, and tensors that share memory
        share it there.
        """
        if tensor.device.type != "cpu":  # a test of what is refused
            return tensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in copies:
            memory = torch.empty(0, dtype=torch.uint8).set_(storage)
            copies[key] = memory, memory.to(self.device, copy=True)
        memory = copies[key][1]
        whole = memory[: memory.numel() // tensor.itemsize * tensor.itemsize].view(tensor.dtype)
        return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
