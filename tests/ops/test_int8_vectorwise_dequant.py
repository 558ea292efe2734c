"""int8_vectorwise_dequant: codes times the absmax of their row, over 127."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx.backends import reference

from .checks import every_isa, refuses, same, strided

int8_vectorwise_dequant = torch.ops.bnbx.int8_vectorwise_dequant

SHAPES = [(1,), (70,), (0, 5), (3, 0), (1, 1), (5, 33), (2, 3, 70), (2, 0, 70), (301, 130)]


@every_isa
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_times_scale(shape):
    A = torch.randint(-128, 128, shape, dtype=torch.int8)
    stats = torch.rand(math.prod(shape[:-1])) * 3
    out = int8_vectorwise_dequant(A, stats)
    exact = A.double() * stats.double().view(*shape[:-1], 1) / 127.0
    torch.testing.assert_close(out, exact.float(), rtol=2e-7, atol=0)
    same(out, reference.int8_vectorwise_dequant(A, stats))
    same(int8_vectorwise_dequant(A, stats.view(shape[:-1])), out)


@every_isa
@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, 1e-42, 3e38])
def test_extreme_scales(scale):
    A, stats = torch.randint(-127, 128, (3, 70), dtype=torch.int8), torch.ones(3)
    A[1, 0] = 0
    stats[1] = scale
    out = int8_vectorwise_dequant(A, stats)
    same(out, reference.int8_vectorwise_dequant(A, stats))
    assert out[1].isnan().all() == math.isnan(scale)
    assert out[[0, 2]].isfinite().all()


@every_isa
def test_strides_do_not_matter():
    A, stats = torch.randint(-128, 128, (33, 47), dtype=torch.int8), torch.rand(47)
    expected = int8_vectorwise_dequant(A.t().contiguous(), stats)
    same(int8_vectorwise_dequant(A.t(), strided(stats)), expected)


WRONG = [
    ("A", {"A": torch.ones(3, 70, dtype=torch.uint8)}),
    ("A", {"A": torch.tensor(1, dtype=torch.int8)}),
    ("stats", {"stats": torch.ones(4)}),
    ("stats", {"stats": torch.ones(3, dtype=torch.float64)}),
    ("stats", {"stats": torch.ones(3, device="meta")}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("int8_vectorwise_dequant", argument, **changed)
