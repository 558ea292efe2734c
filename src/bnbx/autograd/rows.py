"""Batches of any rank as a matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rows_of(tensor: Tensor) -> Tensor:
    """Return the tensor as a matrix of its last dimension; ``reshape(-1, n)`` fails if n is 0."""
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def grad_of_bias(grad_output: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a bias that was added to every row, in its own dtype."""
    return rows_of(grad_output).sum(0, dtype=dtype)
