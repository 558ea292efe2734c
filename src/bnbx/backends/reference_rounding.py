"""Parameters of bfloat16 that keep what plain rounding loses, in plain PyTorch.

The integers are those of ``kernels/common/rounding.h``, so that the bits are too.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 2**32 - 1


def _signed(bits: int) -> int:
    """Return the int64 with the bits of an unsigned one."""
    return (bits + 2**63) % 2**64 - 2**63


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right as if they were unsigned."""
    mask: int = 2 ** (64 - bits) - 1
    return z >> bits & mask


def random_bits(seed: int, step: int | Tensor, numel: int, device: torch.device) -> Tensor:
    """Return 32 random bits for each element of a parameter in one step, as int64."""
    # Products and sums of int64 wrap around at 2^64.
    z = step.long() if isinstance(step, Tensor) else torch.full((), step, device=device)
    z = z * _signed(0x9E3779B97F4A7C15) + _signed(seed)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shifted(z, 31)
    x = (torch.arange(numel, device=device) & _WORD) ^ (z & _WORD)
    x = ((x ^ x >> 16) * 0x7FEB352D) & _WORD
    x = ((x ^ x >> 15) + _shifted(z, 32)) & _WORD
    x = (x * 0x846CA68B) & _WORD
    return x ^ x >> 16


def _truncated(values: Tensor) -> Tensor:
    """Return float32 values with the 16 bits that bfloat16 does not have cut off."""
    return (values.view(torch.int32) & -0x10000).view(torch.float32)


def rounded_stochastically(values: Tensor, seed: int, step: int | Tensor) -> Tensor:
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
