"""8-bit codes of the dynamic map to values, into an output that exists."""

from __future__ import annotations

import pytest
import torch

from bnbx.codebooks import create_dynamic_map
from common import DTYPES, SIZE, normal


@pytest.mark.parametrize("blocksize", [256, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def bench_dequantize_blockwise(benchmark, dtype, blocksize):
    A, code = normal(SIZE, SIZE, dtype=dtype), create_dynamic_map()
    codes, absmax = torch.ops.bnbx.quantize_blockwise(A, code, blocksize)
    benchmark(torch.ops.bnbx.dequantize_blockwise.out, codes, absmax, code, blocksize, dtype, out=A)
