"""k-bit quantization for PyTorch: 8-bit optimizers, LLM.int8() and NF4/FP4 QLoRA.

The names are those of bitsandbytes: ``import bnbx as bnb``.
"""

import bnbx.backends  # noqa: F401 (registers the kernels before anything can call them)
from bnbx import functional, nn, optim, utils
from bnbx.autograd import MatmulLtState, matmul, matmul_4bit, matmul_4bit_grouped
from bnbx.quantize import QuantizationReport, dequantize_, quantize_

__version__ = "0.1.0"

__all__ = [
    "MatmulLtState",
    "QuantizationReport",
    "__version__",
    "dequantize_",
    "functional",
    "matmul",
    "matmul_4bit",
    "matmul_4bit_grouped",
    "nn",
    "optim",
    "quantize_",
    "utils",
]
