"""The native library, as programs look for it that only want to know whether there is one."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from bnbx.backends import BACKENDS

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


class BNBNativeLibrary:
    """bnbx's kernels in the place of the library that bitsandbytes loads with ctypes.

    It says what is loaded. The C functions of bitsandbytes, which take pointers, are not here:
    their names raise, when called, an error that says so.

    Attributes
    ----------
    compiled_with_cuda
        Whether kernels for CUDA or ROCm are loaded.
    """

    compiled_with_cuda = any(b.device_type == "cuda" and not b.reason for b in BACKENDS)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> NoReturn:
            raise RuntimeError(
                f"{name}: a C function of bitsandbytes, which bnbx does not have. Call what is in "
                "bitsandbytes.functional, or the operators torch.ops.bitsandbytes.*, instead."
            )

        return missing

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def get_native_library() -> BNBNativeLibrary:
    """Return the one native library."""
    return lib


lib = BNBNativeLibrary()
