"""Memory for optimizer states that a GPU reads and that need not fit onto it."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager
    from types import ModuleType


class PagedDevices:
    """The GPUs of one type: memory that they share with the CPU, and the streams that move it.

    On most systems it is *managed*: the driver moves pages to whoever touches them, and takes them
    off a GPU that needs the space. Where it cannot do that while a kernel runs, as on Windows, it
    is pinned main memory, which kernels read and write over the bus.

    Parameters
    ----------
    ext
        The compiled module, whose binding is ``gpu_backend.pyx``.
    """

    def __init__(self, ext: ModuleType) -> None:
        self._ext: Any = ext
        # Asked once for each device, which is once enough for the warning as well.
        self.is_managed = functools.cache(self._is_managed)

    def _is_managed(self, device: torch.device) -> bool:
        with self.guard(device):
            managed: bool = self._ext.has_managed_memory()
        if not managed:
            warnings.warn(
                f"bnbx keeps paged optimizer states of {device} in pinned main memory, and its "
                "kernels read them over the bus at every step, because managed memory cannot move "
                "there while a kernel runs (it can on Linux, not on Windows and in WSL).",
                RuntimeWarning,
                stacklevel=2,
            )
        return managed

    def allocate(self, nbytes: int, device: torch.device) -> tuple[Any, Tensor]:
        """Return a block of paged memory and its bytes, undefined; it lives as long as they.

        Raises
        ------
        ValueError
            If there is not so much memory.
        """
        managed = self.is_managed(device)
        try:
            with self.guard(device):
                block = self._ext.PagedBlock(nbytes, device.index or 0, managed)
        except MemoryError as failure:
            expected = f"{nbytes:,} bytes more of main memory for states of {device}"
            hint = "Use fewer bits, or set is_paged to False for some parameters."
            raise error("paging", expected, "none", hint) from failure
        return block, from_dlpack(block.capsule())

    def move(
        self, blocks: Iterable[Any], device: torch.device, stream: Any, *, to_device: bool
    ) -> None:
        """Queue that managed blocks move to the device or, from there, to main memory."""
        with self.guard(device):
            for block in blocks:
                self._ext.prefetch(block.address, block.used, to_device, stream.cuda_stream)

    # What the emulator, on a CPU, has otherwise:

    def guard(self, device: torch.device) -> AbstractContextManager[None]:
        """Return a context in which the device is the current one."""
        return torch.cuda.device(device)

    def new_stream(self, device: torch.device) -> Any:
        """Return a stream for moves beside the kernels."""
        return torch.cuda.Stream(device)

    def current_stream(self, device: torch.device) -> Any:
        """Return the stream on which kernels are queued."""
        return torch.cuda.current_stream(device)

    def is_capturing(self) -> bool:
        """Return whether a graph is being captured on the current stream."""
        return torch.cuda.is_current_stream_capturing()


#: By type of device, where the kernels for it are loaded.
PAGED_DEVICES: dict[str, PagedDevices] = {}
