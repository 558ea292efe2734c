"""bnbx under the name bitsandbytes: the names at the top of that package."""

from __future__ import annotations

import bnbx.nn.modules
import bnbx.nn.parametrize  # noqa: F401 (attributes of nn)
from bnbx import MatmulLtState, functional, matmul, matmul_4bit, nn, optim, utils
from bnbx.compat.alias import COMPATIBLE_VERSION, install

from . import cextension, consts, cuda_specs
from .autograd import _functions  # noqa: F401 (an attribute of autograd)

__all__ = [
    "MatmulLtState",
    "__version__",
    "autograd",
    "cextension",
    "consts",
    "cuda_specs",
    "features",
    "functional",
    "matmul",
    "matmul_4bit",
    "nn",
    "optim",
    "supported_torch_devices",
    "utils",
]

__version__ = COMPATIBLE_VERSION

#: What accelerate and diffusers ask for before they take a device that is not CUDA's.
features = {"multi_backend"}
#: The devices that transformers lets a quantized model be on; bnbx serves all that torch has.
supported_torch_devices = {"cpu", "cuda", "hpu", "mps", "npu", "xpu"}

install()  # has been called already but in a process that found this directory on its path
