"""The kernels of NVIDIA GPUs, on the current stream of the device that a tensor is on."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends.cuda_choice import decodes_first
from bnbx.backends.decode_first import DecodeFirstBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from bnbx.ops import OptimizerUpdate


def _current_stream(tensor: Tensor) -> int:
    # torch.cuda.current_stream makes an object first, which takes longer than a small kernel.
    stream: int = torch._C._cuda_getCurrentRawStream(tensor.get_device())  # noqa: SLF001
    return stream


class CudaBackend(DecodeFirstBackend):
    """The native backend, with the device of the tensors made the current one where it is not."""

    #: What DLPack calls the type of the devices: kDLCUDA.
    dlpack_device = 2

    def __init__(self, ext: ModuleType) -> None:
        super().__init__(ext, _current_stream, self.dlpack_device)

    def capability(self, device: int) -> tuple[int, int]:
        """Return the compute capability by which ``cuda_choice`` knows the kernels' speed."""
        return _capability(device)

    def kernel(self, method: str) -> Callable[..., Any]:
        """Return the method, called with the device of its first tensor as the current one."""
        function = super().kernel(method)

        def on_device(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            device = _device_of(outputs, args[0])
            # What torch.cuda.current_device returns, which sees to it first that CUDA is
            # initialized: a tensor on a device says that it is.
            if device < 0 or device == torch._C._cuda_getDevice():  # noqa: SLF001
                return function(outputs, *args, **kwargs)
            with torch.cuda.device(device):
                return function(outputs, *args, **kwargs)

        return on_device

    def decodes_first(self, A: Tensor, rows: int, shapeB: Sequence[int]) -> bool:
        """Return what ``cuda_choice`` says."""
        return decodes_first(self.capability(A.get_device()), A.dtype, rows, shapeB)


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _device_of(outputs: Any, first: Any) -> int:
    """Return the number of the device of an operation's first argument; -1 if it is no GPU's."""
    if isinstance(first, Tensor):
        return first.get_device()
    update: OptimizerUpdate = outputs
    return update.p[0].get_device() if update.p else -1
