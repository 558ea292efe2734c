"""int8_mm_dequant: int32 sums times the scales of their row and column, plus a bias."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import DTYPES, close, every_isa, refuses, same, strided

int8_mm_dequant = torch.ops.bnbx.int8_mm_dequant

SHAPES = [(0, 5), (3, 0), (1, 1), (1, 70), (5, 33), (17, 64), (301, 130)]


def check(out, A, row_stats, col_stats, bias):
    """Compare with the definition in float64."""
    rows = row_stats.double().view(*A.shape[:-1], 1)
    scaled = A.double() * rows * col_stats.double() / 127.0**2
    added = torch.zeros(1) if bias is None else bias.double()
    error = 8 * torch.finfo(torch.float32).eps * (scaled.abs() + added.abs())
    close(out, scaled + added, error)


def random_sums(*shape):
    A = torch.randint(-(2**20), 2**20, shape, dtype=torch.int32)
    return A, torch.rand(math.prod(shape[:-1])), torch.rand(shape[-1])


@every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_scaled_sums(shape):
    A, row_stats, col_stats = random_sums(*shape)
    biases = [None, *(torch.randn(shape[-1]).to(dtype) for dtype in DTYPES)]
    for dtype, bias in itertools.product(DTYPES, biases):
        given = (A, row_stats, col_stats, dtype, bias)
        out = int8_mm_dequant(*given)
        assert out.dtype is dtype
        check(out, *given[:3], bias)
        check(reference.int8_mm_dequant(*given), *given[:3], bias)


@every_isa
def test_leading_dimensions():
    for shape in ((70,), (2, 3, 70), (2, 0, 70)):
        A, row_stats, col_stats = random_sums(*shape)
        check(
            int8_mm_dequant(A, row_stats, col_stats, torch.float32), A, row_stats, col_stats, None
        )


@every_isa
def test_float16_by_default():
    A, row_stats, col_stats = random_sums(3, 70)
    expected = int8_mm_dequant(A, row_stats, col_stats, torch.float16)
    same(int8_mm_dequant(A, row_stats, col_stats), expected)


@every_isa
def test_extremes():
    A = torch.tensor([[2**31 - 1, -(2**31), 0, 1]] * 3, dtype=torch.int32)
    row_stats, col_stats = torch.tensor([1.0, math.nan, 1e-30]), torch.tensor([1.0, 0.0, 5.0, 1e-8])
    out = int8_mm_dequant(A, row_stats, col_stats, torch.float32)
    assert out[1].isnan().all()
    check(out[[0, 2]], A[[0, 2]], row_stats[[0, 2]], col_stats, None)


@every_isa
def test_strides_do_not_matter():
    given = arguments("int8_mm_dequant")
    other = {name: strided(given[name]) for name in ("A", "row_stats", "col_stats", "bias")}
    same(int8_mm_dequant(**{**given, **other}), int8_mm_dequant(**given))


WRONG = [
    ("A", {"A": torch.ones(3, 5)}),
    ("A", {"A": torch.tensor(1, dtype=torch.int32)}),
    ("row_stats", {"row_stats": torch.ones(4)}),
    ("row_stats", {"row_stats": torch.ones(3, dtype=torch.float16)}),
    ("row_stats", {"row_stats": torch.ones(3, device="meta")}),
    ("col_stats", {"col_stats": torch.ones(3)}),
    ("col_stats", {"col_stats": torch.ones(5, dtype=torch.float64)}),
    ("col_stats", {"col_stats": torch.ones(5, device="meta")}),
    ("dtype", {"dtype": torch.int32}),
    ("bias", {"bias": torch.ones(6)}),
    ("bias", {"bias": torch.ones(1, 5)}),
    ("bias", {"bias": torch.ones(5, dtype=torch.int32)}),
    ("bias", {"bias": torch.ones(5, device="meta")}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("int8_mm_dequant", argument, **changed)
