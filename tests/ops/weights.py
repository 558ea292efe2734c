"""Random 4-bit weights, and the check of what is multiplied with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnbx.codebooks import get_4bit_type
from bnbx.conformance.samples import SIGNED

from .checks import close, per_element


def random_weight(
    N: int, K: int, blocksize: int, quant_type: str = "nf4", nested_blocksize: int | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Return the weight that random codes and scales mean, and the arguments that describe it."""
    count, blocks = N * K, -(-N * K // blocksize)
    packed = torch.randint(256, (-(-count // 2), 1), dtype=torch.uint8)
    state: dict[str, Any] = {"B": packed, "shapeB": [N, K]}
    state |= {"blocksize": blocksize, "quant_type": quant_type}
    if nested_blocksize is None:
        scales = state["absmax"] = torch.rand(blocks) + 0.1
    else:
        absmax_8bit = torch.randint(256, (blocks,), dtype=torch.uint8)
        absmax = torch.rand(-(-blocks // nested_blocksize)) + 0.1
        offset = torch.tensor(0.7)
        state |= {"absmax": absmax, "absmax_8bit": absmax_8bit, "absmax_code": SIGNED}
        state |= {"absmax_offset": offset, "absmax_blocksize": nested_blocksize}
        scales = SIGNED[absmax_8bit.int()] * per_element(absmax, nested_blocksize, blocks) + offset
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count]
    weight = get_4bit_type(quant_type)[codes.int()] * per_element(scales, blocksize, count)
    return weight.view(N, K), state


def check_product(out: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Compare with A times the weight's transpose; a kernel may round the weight to A's dtype."""
    A64, weight = A.double(), weight.double()
    exact = A64 @ weight.t() + (0.0 if bias is None else bias.double())
    # Each term is rounded by itself, so the errors add up like a random walk: the 2-norm. So do
    # those of the sums after each term, which grow meanwhile: the root of the depth.
    norm = (A64.square() @ weight.t().square()).sqrt()
    sums = max(32.0, 2 * A.shape[-1] ** 0.5) * torch.finfo(torch.float32).eps
    close(out, exact, norm * (torch.finfo(A.dtype).eps + sums))
    assert out.dtype is A.dtype
