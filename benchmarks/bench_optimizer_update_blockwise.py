"""One step with states of 8 or 4 bits: one large parameter, and many small ones in one call."""

from __future__ import annotations

import pytest
import torch

from bnbx.ops import RULES
from bnbx.optim.state import QuantizationMaps, new_state
from common import DTYPES, HYPERPARAMETERS, PARAMETERS, normal


@pytest.mark.parametrize(("count", "numel"), PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", RULES)
def bench_optimizer_update_blockwise(benchmark, name, bits, dtype, count, numel):
    g, p = ([normal(numel, dtype=dtype) for _ in range(count)] for _ in range(2))
    maps = QuantizationMaps()
    states = [new_state(x, bits, RULES[name], maps) for x in p]
    qmaps = [states[0].get(k) for k in ("qmap1", "qmap2")]
    codes, scales = (
        [[s[k] for s in states if k in s] for k in (f"{kind}1", f"{kind}2")]
        for kind in ("state", "absmax")
    )
    update = torch.ops.bnbx.optimizer_update_blockwise
    lists = (g, p, *codes, [], *qmaps, *scales, [1] * count)
    benchmark(update, name, bits, *lists, **HYPERPARAMETERS)
