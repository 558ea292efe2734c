"""The product with a 4-bit weight in its stored layout, with plain and with nested scales."""

from __future__ import annotations

import pytest
import torch

from bnbx.codebooks import create_dynamic_map
from common import DTYPES, ROW_COUNTS, SIZE, normal


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("M", ROW_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def bench_gemm_4bit(benchmark, dtype, M, nested):
    A, W = normal(M, SIZE, dtype=dtype), normal(SIZE, SIZE, dtype=dtype)
    packed, absmax = torch.ops.bnbx.quantize_4bit(W, 64, "nf4", torch.uint8)
    scales = {}
    if nested:
        code, offset = create_dynamic_map(), absmax.mean()
        absmax_8bit, absmax = torch.ops.bnbx.quantize_blockwise(absmax - offset, code, 256)
        scales = {"absmax_8bit": absmax_8bit, "absmax_code": code, "absmax_offset": offset}
    benchmark(torch.ops.bnbx.gemm_4bit, A, packed, W.shape, absmax, 64, "nf4", **scales)
