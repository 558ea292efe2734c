"""The whole LLM.int8() forward, with and without outlier columns."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, ROW_COUNTS, SIZE, activations, int8, stats


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("M", ROW_COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_int8_linear(benchmark, dtype, M, threshold):
    A, CB, SCB = activations(M, SIZE, dtype=dtype), int8(SIZE, SIZE), stats(SIZE)
    benchmark(torch.ops.bnbx.int8_linear, A, CB, SCB, threshold)
