"""The products in one module, where programs written for bitsandbytes look for them."""

from __future__ import annotations

from bnbx.autograd.matmul_4bit import MatMul4Bit, matmul_4bit
from bnbx.autograd.matmul_8bit import MatMul8bitLt, MatmulLtState, matmul

__all__ = ["MatMul4Bit", "MatMul8bitLt", "MatmulLtState", "matmul", "matmul_4bit"]
