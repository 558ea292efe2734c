"""The gradient of the 4-bit product for its activations, with plain and with nested scales."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, ROW_COUNTS, SIZE, normal, weight_4bit


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("M", ROW_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_gemm_4bit_transposed(benchmark, dtype, M, nested):
    A, weight = normal(M, SIZE, dtype=dtype), weight_4bit(SIZE, SIZE, nested=nested)
    benchmark(torch.ops.bnbx.gemm_4bit_transposed, A, **weight)
