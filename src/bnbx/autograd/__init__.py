"""Products with quantized weights, with gradients."""

from __future__ import annotations

from bnbx.autograd.matmul_4bit import matmul_4bit
from bnbx.autograd.matmul_4bit_grouped import matmul_4bit_grouped
from bnbx.autograd.matmul_8bit import MatmulLtState, matmul

__all__ = ["MatmulLtState", "matmul", "matmul_4bit", "matmul_4bit_grouped"]
