"""4-bit quantization that knows the inputs of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnbx.codebooks import get_4bit_type
from bnbx.functional import quantize_4bit

if TYPE_CHECKING:
    from bnbx.functional import QuantState

#: Of the mean second moment, added to all: what the calibration has not seen is not free.
DAMPING = 0.01
#: Columns whose errors are passed on to those behind them in one product.
COLUMNS = 128


def quantize_with_moments(
    weight: Tensor,
    moments: Tensor,
    blocksize: int,
    compress_statistics: bool,
    quant_type: str,
    quant_storage: torch.dtype,
) -> tuple[Tensor, QuantState]:
    """Quantize a weight so that the outputs of its layer change little.

    Parameters
    ----------
    weight
        float32, float16 or bfloat16 of shape ``(N, K)``.
    moments
        Mean squares of the layer's inputs, float32 of shape ``(K,)``: scales are searched with
        them as importance. Or mean products of any two inputs, ``(K, K)``: then the error of each
        column is made good, as far as possible, by those that come after it.
    blocksize, compress_statistics, quant_type, quant_storage
        As for ``quantize_4bit``.

    Returns
    -------
    tuple
        As of ``quantize_4bit``.

    References
    ----------
    Frantar et al. 2022, GPTQ, section 3.
    """
    importance = moments if moments.dim() == 1 else moments.diagonal().contiguous()
    packed, state = quantize_4bit(
        weight,
        None,
        None,
        blocksize,
        compress_statistics,
        quant_type,
        quant_storage,
        scale_search=True,
        importance=importance,
    )
    if moments.dim() == 1 or weight.numel() == 0:
        return packed, state
    scales = state.float_absmax()
    values = with_error_feedback(weight, moments, scales, blocksize, quant_type)
    how = (blocksize, quant_type, quant_storage)
    return torch.ops.bnbx.encode_4bit(values, scales, *how), state


def with_error_feedback(
    weight: Tensor, moments: Tensor, scales: Tensor, blocksize: int, quant_type: str
) -> Tensor:
    """Return values on the grid of the scales, float32, for which the outputs change little.

    Columns are rounded in descending order of their moments; the scales are given, so the order
    is free. What rounding a column does to the outputs is taken back by changing those behind it,
    by the rows of the Cholesky factor of the inverse moments.
    """
    levels = get_4bit_type(quant_type, weight.device).sort().values
    bounds = (levels[:-1] + levels[1:]) / 2
    order = moments.diagonal().argsort(descending=True, stable=True)
    factor = _factor(moments[order][:, order])
    of_element = scales.repeat_interleave(blocksize)[: weight.numel()].view(weight.shape)
    # Transposed, so that a column is one piece of memory.
    steps = of_element.t()[order].contiguous()
    rest = weight.float().t()[order].contiguous()
    values = torch.empty_like(rest)
    for start in range(0, len(rest), COLUMNS):
        stop = min(start + COLUMNS, len(rest))
        errors = torch.zeros_like(rest[start:stop])
        for i in range(start, stop):
            nearest = levels[torch.bucketize(rest[i] / steps[i], bounds)] * steps[i]
            values[i] = nearest
            error = (rest[i] - nearest) / factor[i, i]
            # A row with a NaN loses the block that has it, and nothing else.
            errors[i - start] = error.nan_to_num_(0.0, 0.0, 0.0)
            rest[i + 1 : stop].addr_(factor[i, i + 1 : stop], errors[i - start], alpha=-1.0)
        rest[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1.0)
    back = torch.empty_like(values)
    back[order] = values
    return back.t().contiguous()


def _factor(moments: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments."""
    damped = moments.double()
    mean = damped.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped.diagonal().add_(DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()
