"""estimate_quantiles: between the neighbours in the sorted tensor, give or take 1/128 of them."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx.backends import reference

from .checks import DTYPES, every_isa, refuses, run, same, strided

SIZES = (1, 2, 256, 1001, 140_001)
INTEGERS = {2: torch.int16, 4: torch.int32}


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


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_far_from_each_other(dtype):
    """Few of them, or many, are far from where most are; a large share is zero."""
    A = torch.randn(20_000)
    far = torch.linspace(-110, 110, len(A)).exp2()
    some = torch.rand(len(A)) < 0.3
    for scattered in (A * far, A.where(some, far), A.where(some, 0.0), A.where(some, 1e-30 * A)):
        for offset, count in ((1 / 512, 256), (0.0, 1000)):
            check(run_op, scattered.to(dtype), offset, count)


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
@pytest.mark.parametrize(("dtype", "integer"), [(d, INTEGERS[d.itemsize]) for d in DTYPES])
def test_each_nan_is_one(dtype, integer):
    """The bits that make it a NaN and not infinity may be the lowest ones."""
    A = torch.randn(1000).to(dtype)
    A[7] = math.inf
    assert not run_op(A=A, offset=0.1, num_quantiles=3).isnan().any()
    for sign in (1, -1):
        A.view(integer)[7] = torch.tensor(sign * math.inf, dtype=dtype).view(integer) + 1
        assert run_op(A=A, offset=0.1, num_quantiles=3).isnan().all()
        assert reference.estimate_quantiles(A, 0.1, 3).isnan().all()


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
