"""Blocks of 64 to packed 4-bit codes."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, SIZE, normal


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_quantize_4bit(benchmark, dtype, quant_type):
    A = normal(SIZE, SIZE, dtype=dtype)
    benchmark(torch.ops.bnbx.quantize_4bit, A, 64, quant_type, torch.uint8)
