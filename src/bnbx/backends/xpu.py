"""The kernels of Intel's GPUs, on the current queue of the device that a tensor is on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bnbx.backends.native_grouped import NativeGroupedBackend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from torch import Tensor

#: kDLOneAPI of DLPack.
_DLPACK_XPU = 14
#: From so many rows on, a 4-bit product decodes the weight once and leaves the product to torch,
#: which has the matrix units. A guess: it has been measured on no GPU of Intel's.
_DECODE_FIRST = 16


def _current_queue(tensor: Tensor) -> int:
    queue: int = torch.xpu.current_stream(tensor.device).sycl_queue
    return queue


class XpuBackend(NativeGroupedBackend):
    """The native backend; products with many rows are left to torch."""

    def __init__(self, ext: ModuleType) -> None:
        _check_libraries(Path("/proc/self/maps"))
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


def _check_libraries(maps: Path) -> None:
    """Raise ImportError if the process has loaded two libraries of SYCL.

    A queue of the one is no queue of the other: using it would end the process.
    """
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/libsycl.so" in line}
    if len(paths) > 1:
        raise ImportError(
            f"the extension and torch {torch.__version__} have loaded different SYCL libraries: "
            f"expected one, got {', '.join(sorted(paths))}; build bnbx with torch's, which "
            "-DBNBX_SYCL_ROOT names"
        )
