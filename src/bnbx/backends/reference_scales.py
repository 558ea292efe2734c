"""The search of 4-bit scales in plain PyTorch, in the order in which the kernels add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnbx.codebooks import get_4bit_type

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Blocks whose largest magnitude is below are left as they are: a trial could lose all its bits.
SMALLEST_SEARCHED = 1e-30


def best_scales(
    blocks: Tensor,
    absmax: Tensor,
    weights: Tensor | None,
    factors: Sequence[float],
    refinements: int,
    quant_type: str,
) -> Tensor:
    """Return the scale of each block with the smallest squared error that was found.

    For given codes q the best scale is <x, q> / <q, q>, and |x|^2 - <x, q>^2 / <q, q> is left. So
    each trial is judged by what its codes are worth at their best scale.

    Parameters
    ----------
    blocks
        float32 of shape ``(blocks, blocksize)``.
    absmax
        Of each block.
    weights
        Of the squared errors, of the shape of ``blocks``.
    factors, refinements, quant_type
        As for the operation.
    """
    searched = absmax >= SMALLEST_SEARCHED
    x = blocks * absmax.reciprocal().unsqueeze(1)
    x = x.where(searched.unsqueeze(1), 0.0)
    levels = get_4bit_type(quant_type, blocks.device).sort().values
    bounds = (levels[:-1] + levels[1:]) / 2

    def nearest(inverse: Tensor) -> Tensor:
        return levels[torch.bucketize(x * inverse.unsqueeze(1), bounds)]

    def weighted(values: Tensor) -> Tensor:
        return values if weights is None else weights * values

    worth, ratio = torch.zeros_like(absmax), torch.ones_like(absmax)

    def judge(inverse: Tensor) -> tuple[Tensor, Tensor]:
        q = nearest(inverse)
        of_q = weighted(q)
        xq, qq = _sum(x * of_q), _sum(q * of_q)
        fitted = xq / qq
        found = fitted * xq
        more = found > worth
        return found.where(more, worth), fitted.where(more, ratio)

    for factor in factors:
        worth, ratio = judge(ratio.new_tensor(factor).reciprocal().expand(len(x)))
    for _ in range(refinements):
        worth, ratio = judge(ratio.reciprocal())

    def error(ratio: Tensor) -> Tensor:
        off = x - nearest(ratio.reciprocal()) * ratio.unsqueeze(1)
        return _sum(off * weighted(off))

    plain = torch.ones_like(ratio)
    scales = absmax * ratio.where(error(plain) > error(ratio), plain)
    return scales.where(scales.isfinite(), absmax)


def _sum(terms: Tensor) -> Tensor:
    """Return the sum of each row, added up from left to right."""
    total = torch.zeros_like(terms[:, 0])
    for column in terms.unbind(dim=1):
        total = total + column
    return total
