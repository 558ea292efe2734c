"""estimate_quantiles: between the neighbours in the sorted tensor, give or take 1/128 of them."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx.backends import reference

from .checks import DTYPES, every_isa, refuses, run, same, strided

SIZES = (1, 2, 256, 1001, 140_001)


def check(estimate, A, offset, num_quantiles):
    values = A.flatten().double().sort().values
    step = (1 - 2 * offset) / (num_quantiles - 1)
    ranks = [(offset + i * step) * (A.numel() - 1) for i in range(num_quantiles)]
    low = values[[math.floor(r + 1e-9) for r in ranks]]
    high = values[[math.ceil(r - 1e-9) for r in ranks]]
    found = estimate(A=A, offset=offset, num_quantiles=num_quantiles).double()
    slack = (0.0 if A.dtype == torch.bfloat16 else 1 / 128) + 1e-6
    assert (found >= low - slack * low.abs() - 1e-37).all()
    assert (found <= high + slack * high.abs() + 1e-37).all()
    assert (found.diff() >= 0.0).all()


def run_op(**call):
    return run("estimate_quantiles", **call)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_quantiles(dtype, size):
    for A in (
        torch.randn(size),
        torch.rand(size) * 1e-3,
        torch.randn(size).exp(),
        torch.ones(size),
    ):
        for offset, count in ((1 / 512, 256), (0.0, 2), (0.25, 17), (0.5, 3)):
            check(run_op, A.to(dtype), offset, count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference(dtype):
    check(reference.estimate_quantiles, torch.randn(1001).to(dtype), 1 / 512, 256)


@every_isa
def test_zeros_infinities_and_nan():
    A = torch.zeros(1000)
    same(run_op(A=A, offset=0.0, num_quantiles=5), torch.zeros(5))
    A[:10], A[-10:] = -math.inf, math.inf
    for estimate in (run_op, reference.estimate_quantiles):
        found = estimate(A=A, offset=0.0, num_quantiles=3)
        same(found, torch.tensor([-math.inf, 0.0, math.inf]))
        for nan in (math.nan, -math.nan):
            bad = A.clone()
            bad[500] = nan
            assert estimate(A=bad, offset=0.0, num_quantiles=3).isnan().all()


@every_isa
def test_shape_and_strides_do_not_matter():
    A = torch.randn(40, 30)
    expected = run_op(A=A, offset=0.01, num_quantiles=9)
    same(run_op(A=A.t(), offset=0.01, num_quantiles=9), expected)
    same(run_op(A=strided(A), offset=0.01, num_quantiles=9), expected)


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("A", {"A": torch.zeros(0)}),
        ("A", {"A": torch.zeros(300, dtype=torch.float64)}),
        ("offset", {"offset": -0.1}),
        ("offset", {"offset": 0.6}),
        ("offset", {"offset": math.nan}),
        ("num_quantiles", {"num_quantiles": 1}),
    ],
)
def test_refuses(argument, changed):
    refuses("estimate_quantiles", argument, **changed)
