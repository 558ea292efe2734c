"""int32 sums to scaled values."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, ROW_COUNTS, SIZE, stats


@pytest.mark.parametrize("M", ROW_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_int8_mm_dequant(benchmark, dtype, M):
    A = torch.randint(-(2**20), 2**20, (M, SIZE), dtype=torch.int32)
    benchmark(torch.ops.bnbx.int8_mm_dequant, A, stats(M), stats(SIZE), dtype)
