"""The int8 product with its scales in one pass."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, ROW_COUNTS, SIZE, int8, stats


@pytest.mark.parametrize("M", ROW_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_int8_scaled_mm(benchmark, dtype, M):
    A, B = int8(M, SIZE), int8(SIZE, SIZE)
    benchmark(torch.ops.bnbx.int8_scaled_mm, A, B, stats(M), stats(SIZE), None, dtype)
