"""int8 rows to float32."""

from __future__ import annotations

import torch

from common import SIZE, int8, stats


def bench_int8_vectorwise_dequant(benchmark):
    benchmark(torch.ops.bnbx.int8_vectorwise_dequant, int8(SIZE, SIZE), stats(SIZE))
