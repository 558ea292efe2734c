"""A device in Python: torch's PrivateUse1 under the name npu, whose memory is that of the CPU.

Its tensors say that they are on the device, so that the dispatcher takes the kernels registered for
it. PyTorch's own operations are those of the CPU on the same memory. Importing the module makes the
device, for the whole process.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import Self

NAME = "npu"


class DeviceTensor(Tensor):
    """A tensor on the device; ``memory`` is the tensor of the CPU that it stands for."""

    memory: Tensor

    @staticmethod
    def __new__(cls, memory: Tensor) -> Self:
        place = (memory.size(), memory.stride(), memory.storage_offset())
        self = Tensor._make_wrapper_subclass(cls, *place, dtype=memory.dtype, device=f"{NAME}:0")
        self.memory = memory
        return self

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "bnbx":
            return on_memory(func, *args, **kwargs)
        keys = torch._C.DispatchKey
        own = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "PrivateUse1")
        return func._op_dk(
            keys.PrivateUse1 if own else keys.CompositeExplicitAutograd, *args, **kwargs
        )

    def tolist(self) -> Any:  # which torch has for no subclass
        return self.memory.tolist()


def on_memory(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operation of PyTorch's on the memory of its tensors; results are on the device.

    Unless the call says that they shall be elsewhere.
    """
    given = {id(t.memory): t for t in tree_leaves((args, kwargs)) if isinstance(t, DeviceTensor)}
    args, kwargs = tree_map_only(DeviceTensor, lambda t: t.memory, (args, kwargs))
    device = torch.device(kwargs.get("device") or NAME)
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    result = func(*args, **kwargs)
    if device.type != NAME:
        return result

    def back(tensor: Tensor) -> Tensor:
        return given[id(tensor)] if id(tensor) in given else DeviceTensor(tensor)

    return tree_map_only(Tensor, back, result)


def function_of(operation: str) -> Any:
    """Return one of PyTorch's operations by its name, with its overload if it has one."""
    name, _, overload = operation.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


backend_registration._setup_privateuseone_for_python_backend(NAME)
#: For what makes tensors without having one, and for torch.tensor, which does not ask subclasses.
OPERATIONS = torch.library.Library("aten", "IMPL")
for each in ("empty.memory_format", "empty_strided", "copy_", "_to_copy"):
    OPERATIONS.impl(each, functools.partial(on_memory, function_of(each)), "PrivateUse1")
