"""Blocks to 8-bit codes of the dynamic map; 256 is the optimizers' blocksize."""

from __future__ import annotations

import pytest
import torch

from bnbx.codebooks import create_dynamic_map
from common import DTYPES, SIZE, normal


@pytest.mark.parametrize("blocksize", [256, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_quantize_blockwise(benchmark, dtype, blocksize):
    A = normal(SIZE, SIZE, dtype=dtype)
    benchmark(torch.ops.bnbx.quantize_blockwise, A, create_dynamic_map(), blocksize)
