"""Packed 4-bit codes to values, into an output that exists."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, SIZE, normal


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_dequantize_4bit(benchmark, dtype, quant_type):
    A = normal(SIZE, SIZE, dtype=dtype)
    packed, absmax = torch.ops.bnbx.quantize_4bit(A, 64, quant_type, torch.uint8)
    benchmark(
        torch.ops.bnbx.dequantize_4bit.out, packed, absmax, 64, quant_type, A.shape, dtype, out=A
    )
