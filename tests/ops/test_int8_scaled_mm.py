"""int8_scaled_mm: the int8 product and its epilogue in one pass."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import DTYPES, close, every_isa, refuses, same, strided

int8_scaled_mm = torch.ops.bnbx.int8_scaled_mm

SHAPES = [
    *((M, 5, 70) for M in (0, 1, 2, 3, 4, 5, 9, 17, 33)),
    *((3, N, 64) for N in (0, 1, 2, 3, 4, 7, 16, 33, 70)),
    *((2, 6, K) for K in (0, 1, 15, 16, 17, 63, 65, 129, 1025)),
    *((1, 70, 1025), (33, 65, 300), (9, 300, 64), (17, 40, 1100)),
]


@functools.cache
def products(M, N, K):
    """Return calls with their results in float64 and the error that float32 may make on the way."""
    A = torch.randint(-127, 128, (M, K), dtype=torch.int8)
    B = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    row_stats, col_stats = torch.rand(M), torch.rand(N)
    scale = row_stats.double().unsqueeze(1) * col_stats.double() / 127.0**2
    scaled = (A.long() @ B.long().t()).double() * scale
    calls = []
    for dtype, bias_dtype in itertools.product(DTYPES, (None, *DTYPES)):
        bias = None if bias_dtype is None else torch.randn(N).to(bias_dtype)
        added = torch.zeros(N).double() if bias is None else bias.double()
        error = 8 * torch.finfo(torch.float32).eps * (scaled.abs() + added.abs())
        given = (A, B, row_stats, col_stats, bias, dtype)
        calls.append((given, scaled + added, error))
        close(reference.int8_scaled_mm(*given), scaled + added, error)
    return calls


@every_isa
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_scaled_product(M, N, K):
    for given, exact, error in products(M, N, K):
        out = int8_scaled_mm(*given)
        assert out.dtype is given[-1]
        close(out, exact, error)


@every_isa
def test_leading_dimensions():
    given = arguments("int8_scaled_mm")
    for shape in ((70,), (2, 3, 70), (2, 0, 70)):
        A = torch.randint(-127, 128, shape, dtype=torch.int8)
        row_stats = torch.rand(math.prod(shape[:-1]))
        out = int8_scaled_mm(**{**given, "A": A, "row_stats": row_stats})
        flat = int8_scaled_mm(**{**given, "A": A.reshape(-1, 70), "row_stats": row_stats})
        same(out, flat.view(*shape[:-1], 5))


@every_isa
def test_float16_by_default():
    given = arguments("int8_scaled_mm")
    del given["dtype"]
    same(int8_scaled_mm(**given), int8_scaled_mm(**given, dtype=torch.float16))


@every_isa
def test_nan_in_a_scale_reaches_its_row_or_column_alone():
    given = arguments("int8_scaled_mm")
    expected = int8_scaled_mm(**given)
    given["row_stats"][1] = given["col_stats"][2] = expected[1] = expected[:, 2] = math.nan
    same(int8_scaled_mm(**given), expected)


@every_isa
def test_strides_do_not_matter():
    given = arguments("int8_scaled_mm")
    names = ("A", "B", "row_stats", "col_stats", "bias")
    other = {name: strided(given[name]) for name in names}
    same(int8_scaled_mm(**{**given, **other}), int8_scaled_mm(**given))


WRONG = [
    ("A", {"A": torch.ones(3, 70)}),
    ("A", {"A": torch.ones(3, 69, dtype=torch.int8)}),
    ("A", {name: torch.zeros(1, 2**17, dtype=torch.int8) for name in ("A", "B")}),
    ("B", {"B": torch.ones(5, 70, dtype=torch.int32)}),
    ("B", {"B": torch.ones(350, dtype=torch.int8)}),
    ("B", {"B": torch.ones(5, 70, dtype=torch.int8, device="meta")}),
    ("row_stats", {"row_stats": torch.ones(5)}),
    ("row_stats", {"row_stats": torch.ones(3, dtype=torch.float16)}),
    ("row_stats", {"row_stats": torch.ones(3, device="meta")}),
    ("col_stats", {"col_stats": torch.ones(3)}),
    ("col_stats", {"col_stats": torch.ones(5, dtype=torch.float16)}),
    ("col_stats", {"col_stats": torch.ones(5, device="meta")}),
    ("bias", {"bias": torch.ones(3)}),
    ("bias", {"bias": torch.ones(5, dtype=torch.float64)}),
    ("bias", {"bias": torch.ones(5, device="meta")}),
    ("dtype", {"dtype": torch.float64}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("int8_scaled_mm", argument, **changed)
