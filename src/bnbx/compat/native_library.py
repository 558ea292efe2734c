"""What stands where bitsandbytes has the library of C functions that it calls with pointers."""

from __future__ import annotations

from typing import Any, NoReturn

from bnbx.backends import BACKENDS


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


lib = BNBNativeLibrary()
