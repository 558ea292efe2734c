"""check_finite: any value at any place."""

from __future__ import annotations

import pytest
import torch

from bnbx.checkpoint.finite import check_finite

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finds_it_anywhere(dtype, value):
    values = torch.randn(67).to(dtype)
    check_finite("x", values)
    if dtype == torch.float8_e4m3fn:
        value = float("nan")  # it has no infinities
    for place in range(67):
        damaged = values.clone()
        damaged[place] = value
        with pytest.raises(ValueError, match="tensor x: expected finite values, got a NaN"):
            check_finite("x", damaged)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_values_are_numbers(dtype):
    limits = torch.finfo(dtype)
    check_finite("x", torch.tensor([limits.min, limits.max], dtype=dtype))
    check_finite("x", torch.empty(0, 3, dtype=dtype))


def test_integers_are_numbers():
    check_finite("x", torch.tensor([255, 0], dtype=torch.uint8))
