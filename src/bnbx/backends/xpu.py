"""The kernels of Intel's GPUs, on the current queue of the device that a tensor is on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from bnbx.backends.decode_first import DecodeFirstBackend
from bnbx.backends.loading import Found, find_module, mapped_libraries
from bnbx.backends.paged_memory import PagedDevices

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager
    from types import ModuleType

    from torch import Tensor

#: kDLOneAPI of DLPack.
_DLPACK_XPU = 14
#: From so many rows on, a 4-bit product decodes the weight once and leaves the product to torch,
#: which has the matrix units. A guess: it has been measured on no GPU of Intel's.
_DECODE_FIRST = 16


def find() -> Found | None:
    """Return the module for a torch for Intel's GPUs; say why there is none if there could be."""
    found = find_module(
        Found("_sycl", XpuBackend, XpuPagedDevices),
        "XPU",
        fits_torch=torch.version.xpu is not None,
    )
    if found is not None:
        keep_compiled_kernels()
    return found


def keep_compiled_kernels() -> None:
    """Switch SYCL's persistent cache on, unless the user has decided: each kernel takes seconds."""
    os.environ.setdefault("SYCL_CACHE_PERSISTENT", "1")


def _current_queue(tensor: Tensor) -> int:
    queue: int = torch.xpu.current_stream(tensor.device).sycl_queue
    return queue


class XpuPagedDevices(PagedDevices):
    """Intel's GPUs: the same memory by the names that torch has for them."""

    def move(
        self, blocks: Iterable[Any], device: torch.device, stream: Any, *, to_device: bool
    ) -> None:
        """Queue that managed blocks move to the device; back they move when the CPU reads them."""
        with self.guard(device):
            for block in blocks:
                self._ext.prefetch(block.address, block.used, to_device, stream.sycl_queue)

    def guard(self, device: torch.device) -> AbstractContextManager[None]:
        """Return a context in which the device is the current one."""
        return torch.xpu.device(device)

    def new_stream(self, device: torch.device) -> Any:
        """Return a queue for moves beside the kernels."""
        return torch.xpu.Stream(device)

    def current_stream(self, device: torch.device) -> Any:
        """Return the queue of the kernels."""
        return torch.xpu.current_stream(device)

    def is_capturing(self) -> bool:
        """Return that no graph is being captured: bnbx does not support them on this device."""
        return False


class XpuBackend(DecodeFirstBackend):
    """The native backend; products with many rows are left to torch."""

    def __init__(self, ext: ModuleType) -> None:
        _check_libraries()
        super().__init__(ext, _current_queue, _DLPACK_XPU)

    def decodes_first(self, A: Tensor, rows: int, shapeB: Sequence[int]) -> bool:  # noqa: ARG002
        """Return whether there are many rows."""
        return rows >= _DECODE_FIRST


def _check_libraries(maps: str | None = None) -> None:
    """Raise if the module has brought a second library of SYCL into the process."""
    found = mapped_libraries("libsycl.so", maps)
    if len(found) > 1:
        raise ImportError(
            f"it and torch {torch.__version__} have each loaded a SYCL library of their own "
            f"({', '.join(found)}). Build bnbx with that of torch, whose folder "
            "-DBNBX_SYCL_ROOT names"
        )
