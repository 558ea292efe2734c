"""int8_double_quant: one matrix quantized by row and by column."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx.backends import reference

from .checks import DTYPES, every_isa, refuses, same, strided, values

int8_double_quant = torch.ops.bnbx.int8_double_quant
int8_vectorwise_quant = torch.ops.bnbx.int8_vectorwise_quant

SHAPES = [
    *((3, K) for K in (0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 129)),
    *((0, 5), (0, 0), (1, 70), (70, 1), (33, 47), (301, 130)),
]


def check(A, threshold):
    rows, columns, row_stats, col_stats, outlier_cols = int8_double_quant(A, threshold)
    same((rows, row_stats, outlier_cols), int8_vectorwise_quant(A, threshold))
    kept = A.double().masked_fill((A.abs() >= threshold) & (threshold > 0.0), 0.0)
    absmax = kept.abs().amax(dim=0) if A.shape[0] else kept.sum(dim=0)
    same(col_stats, absmax.float())
    assert ((columns - kept * 127.0 / absmax.clamp(min=1e-36)).abs() <= 0.50002).all()
    found = (rows, columns, row_stats, col_stats, outlier_cols)
    same(found, reference.int8_double_quant(A, threshold))


@every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_columns(shape):
    for dtype in DTYPES:
        A = values(shape, dtype)
        for threshold in (0.0, 1.5, 1e4, math.inf):
            check(A, threshold)


@every_isa
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_column_that_is_not_finite_gets_absmax_nan_and_harms_no_other(bad):
    other = torch.arange(70) != 33
    for dtype in DTYPES:
        A = values((5, 70), dtype)
        _, expected, _, expected_stats, _ = int8_double_quant(A, 0.0)
        A[2, 33] = bad
        _, columns, _, col_stats, _ = int8_double_quant(A, 0.0)
        assert col_stats[33].isnan()
        same(columns[:, 33], torch.zeros(5, dtype=torch.int8))
        same(columns[:, other], expected[:, other])
        same(col_stats[other], expected_stats[other])
        same(int8_double_quant(A, 2.0), reference.int8_double_quant(A, 2.0))


@every_isa
@pytest.mark.parametrize("scale", [0.0, 1e-35, 1e-38, 1e-42, 1e30, 3.4e38])
def test_smallest_and_largest_magnitudes(scale):
    check(torch.rand(3, 70).mul(2).sub(1) * scale, 0.0)


@every_isa
def test_strides_do_not_matter():
    A = values((33, 47), torch.float32)
    expected = int8_double_quant(A.t().contiguous(), 2.0)
    same(int8_double_quant(A.t(), 2.0), expected)
    same(int8_double_quant(strided(A.t()), 2.0), expected)


@pytest.mark.parametrize("argument", ["A", "threshold"])
def test_refuses(argument):
    wrong = {
        "A": [torch.ones(3, 5, dtype=torch.int8), torch.ones(5), torch.ones(2, 3, 5)],
        "threshold": [-0.5, math.nan],
    }
    for value in wrong[argument]:
        refuses("int8_double_quant", argument, **{argument: value})
