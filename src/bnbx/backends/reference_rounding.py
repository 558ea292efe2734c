"""Parameters of bfloat16 that keep what plain rounding loses, in plain PyTorch.

The integers are those of ``kernels/common/rounding.h``, so that the bits are too.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD, _LONG = 2**32 - 1, 2**64 - 1


def random_bits(seed: int, step: int, numel: int, device: torch.device) -> Tensor:
    """Return 32 random bits for each element of a parameter in one step, as int64."""
    z = (seed + step * 0x9E3779B97F4A7C15) & _LONG
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _LONG
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _LONG
    z ^= z >> 31
    # Products wrap around at 2^64, which leaves their low 32 bits right.
    x = (torch.arange(numel, device=device) & _WORD) ^ (z & _WORD)
    x = ((x ^ x >> 16) * 0x7FEB352D) & _WORD
    x = ((x ^ x >> 15) + (z >> 32)) & _WORD
    x = (x * 0x846CA68B) & _WORD
    return x ^ x >> 16


def _truncated(values: Tensor) -> Tensor:
    """Return float32 values with the 16 bits that bfloat16 does not have cut off."""
    return (values.view(torch.int32) & -0x10000).view(torch.float32)


def rounded_stochastically(values: Tensor, seed: int, step: int) -> Tensor:
    """Round float32 to bfloat16, up or down with the probability that makes the mean exact."""
    noise = random_bits(seed, step, values.numel(), values.device).view(values.shape) & 0xFFFF
    bits = values.contiguous().view(torch.int32)
    # What is above the largest bfloat16 becomes it; infinity and NaN stay.
    noise = noise.to(torch.int32).masked_fill((bits & 0x7FFFFFFF) >= 0x7F7F0000, 0)
    return _truncated((bits + noise).view(torch.float32)).to(torch.bfloat16)


def with_rest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest bfloat16 of float32 values, and what is left over in another one.

    The sum of both rounds to the first: where rounding the rest would break that, it is cut off.
    """
    nearest = values.to(torch.bfloat16)
    rest = values - nearest.float()
    rounded = rest.to(torch.bfloat16)
    again = (nearest.float() + rounded.float()).to(torch.bfloat16)
    return nearest, torch.where(again == nearest, rounded, _truncated(rest).to(torch.bfloat16))
