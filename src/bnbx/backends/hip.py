"""The kernels of AMD GPUs, whose devices a torch for ROCm calls ``cuda``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bnbx.backends.cuda import CudaBackend
from bnbx.backends.loading import Found, find_module, mapped_libraries
from bnbx.backends.paged_memory import PagedDevices

if TYPE_CHECKING:
    from types import ModuleType


def find() -> Found | None:
    """Return the module for a torch for ROCm; say why there is none if there could be one."""
    found = Found("_hip", HipBackend, PagedDevices)
    return find_module(found, "ROCm", fits_torch=torch.version.hip is not None)


class HipBackend(CudaBackend):
    """The backend for CUDA, on what torch for ROCm gives the same names."""

    #: kDLROCM.
    dlpack_device = 10

    def __init__(self, ext: ModuleType) -> None:
        _check_runtime(ext.describe()["isa"])
        super().__init__(ext)

    def capability(self, device: int) -> tuple[int, int]:  # noqa: ARG002 (all are alike)
        """Return that of NVIDIA's GPUs without tensor cores: the kernels use no matrix cores.

        So from a few rows of activations on, the weight is decoded first, for torch's product,
        which does use them. From how many is reasoned, not measured.
        """
        return 0, 0


def _check_runtime(toolkit: str, maps: str | None = None) -> None:
    """Raise if the module has brought a second HIP runtime into the process."""
    found = mapped_libraries("libamdhip64", maps)
    if len(found) > 1:
        raise ImportError(
            f"it was built with {toolkit}, torch for {torch.version.hip}, and each has loaded its "
            f"own HIP runtime ({', '.join(found)}). Build bnbx with the ROCm release of torch"
        )
