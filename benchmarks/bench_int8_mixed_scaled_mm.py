"""The scaled int8 product plus a few outlier columns in 16 bit."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, ROW_COUNTS, SIZE, activations, int8, stats


@pytest.mark.parametrize("M", ROW_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_int8_mixed_scaled_mm(benchmark, dtype, M):
    A, CB, SCB = activations(M, SIZE, dtype=dtype), int8(SIZE, SIZE), stats(SIZE)
    CA, SCA, columns = torch.ops.bnbx.int8_vectorwise_quant(A, 6.0)
    benchmark(torch.ops.bnbx.int8_mixed_scaled_mm, A, CA, CB, SCA, SCB, columns)
