"""The int8 product in int32."""

from __future__ import annotations

import pytest
import torch

from common import ROW_COUNTS, SIZE, int8


@pytest.mark.parametrize("M", ROW_COUNTS)
def bench_int8_linear_matmul(benchmark, M):
    benchmark(torch.ops.bnbx.int8_linear_matmul, int8(M, SIZE), int8(SIZE, SIZE))
