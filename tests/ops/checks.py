"""What the tests of the operations share: values to run over and ways to compare."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from bnbx import codebooks
from bnbx.conformance.samples import arguments
from bnbx.ops import BLOCKSIZES_4BIT, FLOAT_DTYPES, QUANT_TYPES_4BIT

DTYPES = FLOAT_DTYPES
QUANT_TYPES = QUANT_TYPES_4BIT
BLOCKSIZES = BLOCKSIZES_4BIT
#: Nothing, less than a vector, partial vectors and blocks, and enough for several threads.
SIZES = (0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 1001, 20_001)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))

#: Ascending codebooks of all kinds; the last is uneven, with ties, and does not reach 1.
CODEBOOKS = {
    "dynamic": codebooks.create_dynamic_map(),
    "dynamic_unsigned": codebooks.create_dynamic_map(signed=False),
    "linear": codebooks.create_linear_map(),
    "linear_4bit": codebooks.create_linear_map(total_bits=4),
    "fp8": codebooks.create_fp8_map(),
    "normal": codebooks.create_normal_map(),
    "quantiles": (torch.linspace(-2.0, 1.9, 256).pow(3) / 8.0).round(decimals=2).sort().values,
}


#: For tests of what the kernels compute, which run once per instruction set.
every_isa = pytest.mark.usefixtures("isa")


def is_for_gpus(isa: str) -> bool:
    """Return whether kernels for GPUs run, which cannot check on the host what tensors hold."""
    return isa.startswith(("warp", "cuda", "sycl", "xpu"))


def values(size: int | tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Normal values whose magnitude changes from place to place, as between blocks of a weight."""
    x = torch.randn(size) * scale
    return (x * torch.rand_like(x).add(0.5)).to(dtype)


def strided(tensor: Tensor) -> Tensor:
    """Return a copy that is not contiguous: every other entry along the last dimension."""
    wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
    wide[..., ::2] = tensor
    return wide[..., ::2]


def per_element(scales: Tensor, blocksize: int, count: int) -> Tensor:
    """Return the scale of each element's block."""
    return scales[torch.arange(count) // blocksize]


def absmax_of(A: Tensor, blocksize: int) -> Tensor:
    """Return the largest magnitude of each block, block by block."""
    blocks = A.float().flatten().split(blocksize) if A.numel() else ()
    return torch.tensor([block.abs().max().item() for block in blocks])


def assert_nearest(
    entries: Tensor, A: Tensor, absmax: Tensor, table: Tensor, blocksize: int
) -> None:
    """Assert that each value of A, in units of its block's absmax, got the nearest table entry."""
    flat = A.double().flatten()
    scaled = flat / per_element(absmax.double(), blocksize, flat.numel()).clamp(min=1e-38)
    gaps = (scaled.unsqueeze(1) - table.double()).abs()
    # float32 rounds the scale, the product and the point half-way between two entries.
    rounding = 8 * torch.finfo(torch.float32).eps
    same(torch.isin(entries, table), torch.ones_like(entries, dtype=torch.bool))
    assert ((scaled - entries.double()).abs() <= gaps.amin(dim=1) + rounding).all()


def same(actual: Any, expected: Any) -> None:
    """Assert that values, shapes and dtypes are equal, NaN to NaN; of tuples, each entry's."""
    if not isinstance(expected, Tensor):
        assert (actual is None) == (expected is None)
        for a, e in zip(actual or (), expected or (), strict=True):
            same(a, e)
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    wrong = (actual != expected) & ~(actual.isnan() & expected.isnan())
    assert not wrong.any(), off(wrong, actual, expected)


def off(wrong: Tensor, actual: Tensor, expected: Tensor) -> str:
    """Return what a failed comparison says."""
    first = wrong.flatten().nonzero()[0, 0]
    got, instead_of = actual.flatten()[first].item(), expected.flatten()[first].item()
    return f"{int(wrong.sum())} of {wrong.numel()} are off; at {first}: {got}, not {instead_of}"


def close(actual: Tensor, exact: Tensor, error: Tensor | float) -> None:
    """Assert that ``actual`` is ``exact`` (float64), off by at most ``error``, then rounded."""
    assert actual.shape == exact.shape
    info = torch.finfo(actual.dtype)
    # Half the spacing of numbers around `exact`, the smallest spacing of all, and the error before.
    bound = exact.abs() * info.eps / 2 + info.smallest_normal * info.eps + error
    wrong = (actual.double() - exact).abs() > bound * 1.001
    wrong |= actual.isnan() != exact.isnan()
    assert not wrong.any(), off(wrong, actual, exact)


def run(name: str, **kwargs: Any) -> Any:
    """Call an operation by its name and its arguments' names."""
    return getattr(torch.ops.bnbx, name.partition(".")[0])(**kwargs)


def refuses(name: str, argument: str, **changed: Any) -> None:
    """Assert that a good call with some arguments changed is refused, naming ``argument``."""
    expected = rf"^{re.escape(argument)}: expected .*, got "
    with pytest.raises(ValueError, match=expected):
        run(name, **{**arguments(name), **changed})
