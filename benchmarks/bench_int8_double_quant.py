"""Rows and columns to int8 in one call."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, SIZE, normal


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_int8_double_quant(benchmark, dtype, threshold):
    A = normal(SIZE, SIZE, dtype=dtype)
    benchmark(torch.ops.bnbx.int8_double_quant, A, threshold)
