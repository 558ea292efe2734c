"""One step with 8-bit states: one large parameter, and many small ones in one call."""

from __future__ import annotations

import pytest
import torch

from bnbx.codebooks import create_dynamic_map
from bnbx.ops import OPTIMIZER_BLOCKSIZE, OPTIMIZERS, blocks_of
from common import DTYPES, HYPERPARAMETERS, PARAMETERS, normal


@pytest.mark.parametrize(("count", "numel"), PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def bench_optimizer_update_8bit_blockwise(benchmark, name, dtype, count, numel):
    g, p = ([normal(numel, dtype=dtype) for _ in range(count)] for _ in range(2))
    maps = create_dynamic_map(signed=True), create_dynamic_map(signed=False)
    codes, scales = [], []
    for code in maps:
        zero = int(code.abs().argmin())
        codes.append([torch.full((numel,), zero, dtype=torch.uint8) for _ in range(count)])
        blocks = blocks_of(numel, OPTIMIZER_BLOCKSIZE)
        scales.append([torch.zeros(blocks) for _ in range(count)])
    update = torch.ops.bnbx.optimizer_update_8bit_blockwise
    benchmark(update, name, g, p, *codes, *maps, *scales, [1] * count, **HYPERPARAMETERS)
