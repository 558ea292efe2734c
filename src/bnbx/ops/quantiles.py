"""Contract of the quantile estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from bnbx.ops.checks import FLOAT_DTYPES, check_dtype
from bnbx.ops.contract import error, operation


@operation("estimate_quantiles(Tensor A, float offset, int num_quantiles) -> Tensor")
def estimate_quantiles(A: Tensor, offset: float, num_quantiles: int) -> Tensor:
    """Return the quantiles of all of A at evenly spaced shares from ``offset`` to ``1 - offset``.

    float32 of shape ``(num_quantiles,)``; NaN throughout if A has a NaN.
    """
    check_dtype("A", A, *FLOAT_DTYPES)
    if A.numel() == 0:
        raise error("A", "at least one element", 0)
    if not 0.0 <= offset <= 0.5:
        raise error("offset", "a share from 0 to 0.5", offset)
    if num_quantiles < 2:
        raise error("num_quantiles", "at least 2", num_quantiles)
    return torch.empty(num_quantiles, dtype=torch.float32, device=A.device)
