"""The kernels of Intel's GPUs, on the current queue of the device that a tensor is on."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bnbx.backends.loading import Found, find_module
from bnbx.backends.native_grouped import NativeGroupedBackend
from bnbx.backends.paged_memory import PagedDevices

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager
    from types import ModuleType

    from torch import Tensor

#: What the process has mapped into its memory; Linux has it.
_MAPS = Path("/proc/self/maps")
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


class XpuBackend(NativeGroupedBackend):
    """The native backend; products with many rows are left to torch."""

    def __init__(self, ext: ModuleType) -> None:
        _check_libraries(_MAPS.read_text() if _MAPS.exists() else "")
        super().__init__(ext, _current_queue, _DLPACK_XPU)

    def _multiply_4bit(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        *nested: Any,
        transposed: bool = False,
    ) -> Tensor:
        if math.prod(A.shape[:-1]) < _DECODE_FIRST:
            call = (A, B, shapeB, absmax, blocksize, quant_type, bias, *nested)
            return super()._multiply_4bit(out, *call, transposed=transposed)
        weight = A.new_empty(shapeB)
        scales = self._scales(absmax, *nested)
        self.dequantize_4bit(weight, B, scales, blocksize, quant_type, shapeB, A.dtype)
        rows, products = A.reshape(-1, A.shape[-1]), out.view(-1, out.shape[-1])
        weight = weight if transposed else weight.t()
        # Autocast does not reach products into a given output.
        if bias is None:
            torch.mm(rows, weight, out=products)
        else:
            torch.addmm(bias, rows, weight, out=products)
        return out


def _check_libraries(maps: str) -> None:
    """Raise if the module has brought a second library of SYCL into the process.

    A queue is an object of the library that made it: to another one, torch's mean nothing.
    """
    found = sorted(set(re.findall(r"\S*/libsycl\.so\S*", maps)))
    if len(found) > 1:
        raise ImportError(
            f"it and torch {torch.__version__} have each loaded a SYCL library of their own "
            f"({', '.join(found)}). Build bnbx with that of torch, whose folder "
            "-DBNBX_SYCL_ROOT names"
        )
