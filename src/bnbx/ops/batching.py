"""What ``torch.vmap`` makes of the products with a quantized weight: one call for the batch.

The other operations are called once for each of the batch, which is what torch does by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def rows_at_once(
    product: Callable[..., Tensor], info: Any, in_dims: Sequence[Any], *args: Any
) -> tuple[Tensor, int]:
    """Batch a product whose rows, those of its first argument, do not depend on each other."""
    rows, *others = in_dims
    if isinstance(rows, int) and not any(isinstance(dim, int) for dim in others):
        return product(args[0].movedim(rows, 0), *args[1:]), 0
    return one_by_one(product, info, in_dims, *args)


def one_by_one(
    product: Callable[..., Tensor], info: Any, in_dims: Sequence[Any], *args: Any
) -> tuple[Tensor, int]:
    """Batch any operation by a call for each of the batch."""

    def entry(i: int) -> list[Any]:
        pairs = zip(args, in_dims, strict=True)
        return [arg.select(dim, i) if isinstance(dim, int) else arg for arg, dim in pairs]

    return torch.stack([product(*entry(i)) for i in range(info.batch_size)]), 0
