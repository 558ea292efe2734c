"""int8_vectorwise_quant: rows scaled to 127, columns with an outlier held back."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx.backends import reference

from .checks import DTYPES, every_isa, refuses, same, strided, values

int8_vectorwise_quant = torch.ops.bnbx.int8_vectorwise_quant

SHAPES = [
    *((3, K) for K in (0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 129, 1001)),
    *((0, 5), (0, 0), (1, 70), (70, 1), (33, 47), (301, 130)),
]


def check(A, threshold):
    """Compare with the definition, entry by entry in float64, and with the reference."""
    codes, stats, outlier_cols = int8_vectorwise_quant(A, threshold)
    x = A.double()
    outliers = (x.abs() >= threshold) & (threshold > 0.0)
    kept = x.masked_fill(outliers, 0.0)
    columns = outliers.any(dim=0)
    absmax = kept.abs().amax(dim=1) if A.shape[1] else kept.sum(dim=1)
    same(stats, absmax.float())
    exact = kept * 127.0 / absmax.clamp(min=1e-36).unsqueeze(1)
    assert codes.dtype is torch.int8
    assert ((codes - exact.masked_fill(columns, 0.0)).abs() <= 0.50002).all()
    if threshold == 0.0:
        assert outlier_cols is None
    else:
        same(outlier_cols, columns.nonzero().flatten())
    same((codes, stats, outlier_cols), reference.int8_vectorwise_quant(A, threshold))


@every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_rows(shape):
    for dtype in DTYPES:
        A = values(shape, dtype)
        for threshold in (0.0, 1.5, 3.0, 1e4, math.inf):
            check(A, threshold)


@every_isa
def test_an_outlier_is_at_least_the_threshold():
    A = torch.tensor([[6.0, 5.9, 0.1], [1.0, -6.0, 0.5]])
    codes, stats, outlier_cols = int8_vectorwise_quant(A, 6.0)
    same(outlier_cols, torch.tensor([0, 1]))
    same(stats, torch.tensor([5.9, 1.0]))
    same(codes, torch.tensor([[0, 0, 2], [0, 0, 64]], dtype=torch.int8))


@every_isa
def test_ties_round_to_even():
    A = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, -127.0]])
    codes, _, _ = int8_vectorwise_quant(A, 0.0)
    same(codes, torch.tensor([[127, 0, 2, 2, 0, -2, -2, 126, -126, -127]], dtype=torch.int8))


@every_isa
def test_no_outliers_and_nothing_but_outliers():
    A = torch.full((3, 5), 2.0)
    codes, stats, outlier_cols = int8_vectorwise_quant(A, 6.0)
    same(outlier_cols, torch.empty(0, dtype=torch.int64))
    same(codes, torch.full((3, 5), 127, dtype=torch.int8))
    codes, stats, outlier_cols = int8_vectorwise_quant(A, 2.0)
    same(outlier_cols, torch.arange(5))
    same(stats, torch.zeros(3))
    same(codes, torch.zeros(3, 5, dtype=torch.int8))


@every_isa
def test_zero_row():
    A = torch.cat([torch.zeros(1, 70), -torch.zeros(1, 70), torch.randn(1, 70)])
    for threshold in (0.0, 2.0):
        check(A, threshold)


@every_isa
def test_strides_do_not_matter():
    A = values((33, 47), torch.float32)
    expected = int8_vectorwise_quant(A.t().contiguous(), 2.0)
    same(int8_vectorwise_quant(A.t(), 2.0), expected)
    same(int8_vectorwise_quant(strided(A.t()), 2.0), expected)


@every_isa
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_gets_absmax_nan_and_harms_no_other(bad):
    for dtype in DTYPES:
        A = values((5, 70), dtype)
        expected, expected_stats, _ = int8_vectorwise_quant(A, 0.0)
        A[2, 33] = bad
        codes, stats, _ = int8_vectorwise_quant(A, 0.0)
        other = torch.tensor([0, 1, 3, 4])
        assert stats[2].isnan()
        same(codes[2], torch.zeros(70, dtype=torch.int8))
        same(codes[other], expected[other])
        same(stats[other], expected_stats[other])
        for threshold in (0.0, 2.0):
            found = int8_vectorwise_quant(A, threshold)
            same(found, reference.int8_vectorwise_quant(A, threshold))


@every_isa
def test_an_infinity_is_an_outlier_and_a_nan_is_none():
    A = torch.tensor([[1.0, math.inf], [1.0, 2.0]])
    _, stats, outlier_cols = int8_vectorwise_quant(A, 6.0)
    same(outlier_cols, torch.tensor([1]))
    same(stats, torch.tensor([1.0, 2.0]))
    _, stats, outlier_cols = int8_vectorwise_quant(torch.tensor([[1.0, math.nan]]), 6.0)
    same(outlier_cols, torch.empty(0, dtype=torch.int64))
    assert stats.isnan().all()


@every_isa
@pytest.mark.parametrize("scale", [1e-35, 1e-38, 1e-42, 1e30, 3.4e38])
def test_smallest_and_largest_magnitudes(scale):
    A = torch.rand(3, 70).mul(2).sub(1) * scale
    check(A, 0.0)
    check(A, 0.5 * scale)


@pytest.mark.parametrize("argument", ["A", "threshold"])
def test_refuses(argument):
    wrong = {
        "A": [torch.ones(3, 5, dtype=torch.float64), torch.ones(5), torch.ones(2, 3, 5)],
        "threshold": [-1.0, math.nan],
    }
    for value in wrong[argument]:
        refuses("int8_vectorwise_quant", argument, **{argument: value})
