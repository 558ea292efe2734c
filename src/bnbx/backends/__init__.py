"""Which kernels serve which device: those of this package, and those that others register.

``BACKENDS`` lists them, as ``python -m bnbx`` does. ``register`` is the entry point for other
packages: an implementation in Python for a device that bnbx has no kernels for.
"""

from __future__ import annotations

from bnbx.backends import cpu, cuda_modules, hip, metal, xpu
from bnbx.backends.loading import Kernels, load
from bnbx.backends.registry import BACKENDS, Backend, register, unregister

__all__ = ["BACKENDS", "Backend", "register", "unregister"]

#: A line for each folder in ``kernels/`` that is a backend.
KERNELS = (
    Kernels("cpu", "cpu", cpu.find),
    Kernels("cuda", "cuda", cuda_modules.find),
    Kernels("hip", "cuda", hip.find),
    Kernels("sycl", "xpu", xpu.find),
    Kernels("metal", "mps", metal.find),
)

load(KERNELS)
