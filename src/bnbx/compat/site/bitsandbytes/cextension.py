"""The native library, as programs look for it that only want to know whether there is one."""

from __future__ import annotations

import torch

from bnbx.compat.native_library import BNBNativeLibrary, lib

from .consts import DYNAMIC_LIBRARY_SUFFIX, PACKAGE_DIR
from .cuda_specs import CUDASpecs, get_cuda_specs, get_cuda_version_tuple, get_rocm_gpu_arch

__all__ = [
    "BNB_BACKEND",
    "DYNAMIC_LIBRARY_SUFFIX",
    "HIP_ENVIRONMENT",
    "PACKAGE_DIR",
    "ROCM_GPU_ARCH",
    "BNBNativeLibrary",
    "CUDASpecs",
    "get_cuda_specs",
    "get_cuda_version_tuple",
    "get_native_library",
    "get_rocm_gpu_arch",
    "lib",
]

HIP_ENVIRONMENT = bool(torch.version.hip)
ROCM_GPU_ARCH = get_rocm_gpu_arch()


def _backend() -> str:
    if torch.version.hip:
        return "ROCm"
    if torch.cuda.is_available():
        return "CUDA"
    return "XPU" if torch.xpu.is_available() else "CPU"


BNB_BACKEND = _backend()


def get_native_library() -> BNBNativeLibrary:
    """Return the one native library."""
    return lib
