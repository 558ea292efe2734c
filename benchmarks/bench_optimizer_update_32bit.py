"""One step with float32 states: one large parameter, and many small ones in one call."""

from __future__ import annotations

import pytest
import torch

from bnbx.ops import OPTIMIZERS
from common import DTYPES, HYPERPARAMETERS, PARAMETERS, normal


@pytest.mark.parametrize(("count", "numel"), PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def bench_optimizer_update_32bit(benchmark, name, dtype, count, numel):
    g, p = ([normal(numel, dtype=dtype) for _ in range(count)] for _ in range(2))
    state1, state2 = ([torch.zeros(numel) for _ in range(count)] for _ in range(2))
    update = torch.ops.bnbx.optimizer_update_32bit
    benchmark(update, name, g, p, state1, state2, [1] * count, **HYPERPARAMETERS)
