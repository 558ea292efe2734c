"""256 quantiles of 16M values, and what sorting them takes."""

from __future__ import annotations

import pytest
import torch

from common import DTYPES, normal


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_estimate_quantiles(benchmark, dtype):
    benchmark(torch.ops.bnbx.estimate_quantiles, normal(2**24, dtype=dtype), 1 / 512, 256)


def bench_sort(benchmark):
    benchmark(torch.sort, normal(2**24, dtype=torch.float32))
