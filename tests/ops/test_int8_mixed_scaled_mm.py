"""int8_mixed_scaled_mm: the scaled int8 product plus the outlier columns in 16 bit."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import DTYPES, close, every_isa, refuses, same, strided

int8_mixed_scaled_mm = torch.ops.bnbx.int8_mixed_scaled_mm

SHAPES = [
    *((M, 5, 70) for M in (0, 1, 2, 3, 4, 5, 9, 17)),
    *((3, N, 64) for N in (0, 1, 2, 3, 4, 7, 33)),
    *((2, 6, K) for K in (1, 15, 16, 17, 63, 65, 129, 1025)),
    *((1, 70, 1025), (33, 65, 300), (9, 300, 64), (17, 40, 1100)),
]


def random_call(M, N, K, dtype, outlier_count):
    A, B = torch.randn(M, K).to(dtype), torch.randn(N, K)
    outlier_cols = torch.randperm(K)[:outlier_count].sort().values
    A[:, outlier_cols] *= 20
    CA, SCA, _ = reference.int8_vectorwise_quant(A.index_fill(1, outlier_cols, 0.0))
    CB, SCB, _ = reference.int8_vectorwise_quant(B)
    return [A, CA, CB, SCA, SCB, outlier_cols, torch.randn(N).to(dtype)]


def check(found, A, CA, CB, SCA, SCB, outlier_cols=None, bias=None):
    """Compare with the definition in float64; a kernel may round the weight to the dtype of A."""
    out, columns = found
    row, column = SCA.double().unsqueeze(1), SCB.double()
    exact = (CA.double() @ CB.double().t()) * row * column / 127.0**2
    error = 8 * torch.finfo(torch.float32).eps * exact.abs()
    if outlier_cols is None:
        assert columns is None
    else:
        same(columns, A[:, outlier_cols])
        weight = CB.double()[:, outlier_cols] * column.unsqueeze(1) / 127.0
        exact += columns.double() @ weight.t()
        norm = (columns.double().square() @ weight.t().square()).sqrt()
        error += norm * (torch.finfo(A.dtype).eps + 32 * torch.finfo(torch.float32).eps)
    if bias is not None:
        exact += bias.double()
        error += 8 * torch.finfo(torch.float32).eps * bias.double().abs()
    assert out.dtype is A.dtype
    close(out, exact, error)


@every_isa
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_product(M, N, K):
    for dtype in DTYPES:
        for outlier_count in (0, 1, min(7, K), K):
            given = random_call(M, N, K, dtype, outlier_count)
            check(int8_mixed_scaled_mm(*given), *given)
            check(reference.int8_mixed_scaled_mm(*given), *given)


@every_isa
def test_without_outliers_and_bias():
    for dtype in DTYPES:
        A, CA, CB, SCA, SCB, _, bias = random_call(3, 5, 70, dtype, 4)
        for given in ((A, CA, CB, SCA, SCB), (A, CA, CB, SCA, SCB, None, bias)):
            check(int8_mixed_scaled_mm(*given), *given)


@every_isa
def test_bias_of_another_dtype():
    for dtype in DTYPES:
        *given, bias = random_call(3, 5, 70, torch.float16, 4)
        bias = bias.to(dtype)
        check(int8_mixed_scaled_mm(*given, bias), *given, bias)


@every_isa
def test_nan_in_an_outlier_stays_in_its_row():
    given = random_call(3, 5, 70, torch.float32, 4)
    expected, _ = int8_mixed_scaled_mm(*given)
    given[0][1, given[5][0]] = expected[1] = math.nan
    same(int8_mixed_scaled_mm(*given)[0], expected)


@every_isa
def test_strides_do_not_matter():
    for dtype in DTYPES:
        given = arguments("int8_mixed_scaled_mm", dtype=dtype)
        other = {name: strided(tensor) for name, tensor in given.items()}
        same(int8_mixed_scaled_mm(**other), int8_mixed_scaled_mm(**given))


@every_isa
@pytest.mark.parametrize("index", [70, 2**40])
def test_an_outlier_beyond_the_last_column_is_refused(index):
    given = arguments("int8_mixed_scaled_mm")
    given["outlier_cols"] = torch.tensor([1, index])
    with pytest.raises(
        (IndexError, RuntimeError, ValueError), match=r"out of (range|(DATA )?bounds)"
    ):
        int8_mixed_scaled_mm(**given)


WRONG = [
    ("A", {"A": torch.ones(3, 70, dtype=torch.int8)}),
    ("A", {"A": torch.ones(70)}),
    ("CA", {"CA": torch.ones(3, 71, dtype=torch.int8), "A": torch.ones(3, 71)}),
    ("CA", {"CA": torch.ones(4, 70, dtype=torch.int8)}),
    (
        "CA",
        {
            "A": torch.zeros(3, 2**17),
            "CA": torch.zeros(3, 2**17, dtype=torch.int8),
            "CB": torch.zeros(5, 2**17, dtype=torch.int8),
        },
    ),
    ("CA", {"CA": torch.ones(3, 70, dtype=torch.int8, device="meta")}),
    ("CB", {"CB": torch.ones(5, 70, device="meta", dtype=torch.int8)}),
    ("CB", {"CB": torch.ones(5, 70)}),
    ("SCA", {"SCA": torch.ones(4)}),
    ("SCA", {"SCA": torch.ones(3, dtype=torch.float16)}),
    ("SCB", {"SCB": torch.ones(6)}),
    ("SCB", {"SCB": torch.ones(5, dtype=torch.float64)}),
    ("outlier_cols", {"outlier_cols": torch.ones(1, dtype=torch.int32)}),
    ("outlier_cols", {"outlier_cols": torch.ones(1, 1, dtype=torch.int64)}),
    ("outlier_cols", {"outlier_cols": torch.ones(1, dtype=torch.int64, device="meta")}),
    ("bias", {"bias": torch.ones(3)}),
    ("bias", {"bias": torch.ones(5, dtype=torch.int8)}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("int8_mixed_scaled_mm", argument, **changed)
