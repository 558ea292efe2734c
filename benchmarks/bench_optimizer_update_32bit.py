"""One step with float32 states: one large parameter, and many small ones in one call."""

from __future__ import annotations

import pytest
import torch

from bnbx.ops import RULES
from bnbx.optim.state import QuantizationMaps, new_state
from common import DTYPES, HYPERPARAMETERS, PARAMETERS, normal


@pytest.mark.parametrize(("count", "numel"), PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RULES)
def bench_optimizer_update_32bit(benchmark, name, dtype, count, numel):
    g, p = ([normal(numel, dtype=dtype) for _ in range(count)] for _ in range(2))
    states = [new_state(x, 32, RULES[name], QuantizationMaps()) for x in p]
    lists = [[s[k] for s in states if k in s] for k in ("state1", "state2")]
    update = torch.ops.bnbx.optimizer_update_32bit
    benchmark(update, name, g, p, *lists, [], [1] * count, **HYPERPARAMETERS)
