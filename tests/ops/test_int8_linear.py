"""int8_linear: LLM.int8() in one call, against its three steps and against their definition."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import DTYPES, close, every_isa, refuses, same, strided

int8_linear = torch.ops.bnbx.int8_linear

SHAPES = [
    *((M, 5, 70) for M in (0, 1, 2, 3, 4, 5, 9, 17)),
    *((3, N, 64) for N in (0, 1, 2, 3, 4, 7, 33)),
    *((2, 6, K) for K in (0, 1, 15, 16, 17, 63, 65, 129, 1025)),
    *((1, 70, 1025), (33, 65, 300), (9, 300, 64), (17, 40, 1100)),
]


def exactly(A, CB, SCB, threshold=0.0, bias=None):
    """Return the definition's result in float64 (Dettmers et al. 2022) and the error allowed."""
    CA, SCA, outlier_cols = reference.int8_vectorwise_quant(A, threshold)
    weight = CB.double() * SCB.double().unsqueeze(1) / 127.0
    rows = CA.double() * SCA.double().unsqueeze(1) / 127.0
    exact = rows @ weight.t()
    # Both sums are exact in int32, or close to it in float32; the last rounding is close()'s.
    error = 32 * torch.finfo(torch.float32).eps * exact.abs()
    if outlier_cols is not None:
        columns = A[:, outlier_cols].double()
        exact = exact + columns @ weight[:, outlier_cols].t()
        norm = (columns.square() @ weight[:, outlier_cols].t().square()).sqrt()
        error = error + norm * (torch.finfo(A.dtype).eps + 32 * torch.finfo(torch.float32).eps)
    if bias is not None:
        exact = exact + bias.double()
        error = error + 8 * torch.finfo(torch.float32).eps * bias.double().abs()
    return exact, error


@functools.cache
def products(M, N, K):
    CB, SCB, _ = reference.int8_vectorwise_quant(torch.randn(N, K))
    calls = []
    for dtype, threshold in itertools.product(DTYPES, (0.0, 1.0, 6.0, math.inf)):
        A = torch.randn(M, K).to(dtype)
        bias = None if threshold == 1.0 else torch.randn(N).to(dtype)
        given = (A, CB, SCB, threshold, bias)
        calls.append((given, *exactly(*given)))
        close(reference.int8_linear(*given), *calls[-1][1:])
    return calls


@every_isa
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_product(M, N, K):
    for given, exact, error in products(M, N, K):
        out = int8_linear(*given)
        assert out.dtype is given[0].dtype
        close(out, exact, error)


@every_isa
def test_bias_of_another_dtype():
    for dtype, bias_dtype in itertools.product(DTYPES, DTYPES):
        given = arguments("int8_linear", dtype=dtype)
        given["bias"] = given["bias"].to(bias_dtype)
        close(int8_linear(**given), *exactly(**given))


@every_isa
def test_leading_dimensions():
    given = arguments("int8_linear")
    for shape in ((70,), (2, 3, 70), (2, 0, 70), (1, 2, 2, 70)):
        A = torch.randn(shape)
        out = int8_linear(**{**given, "A": A})
        assert out.shape == (*shape[:-1], 5)
        same(out.view(-1, 5), int8_linear(**{**given, "A": A.view(-1, 70)}))


@every_isa
def test_strides_do_not_matter():
    given = arguments("int8_linear")
    other = {name: strided(given[name]) for name in ("A", "CB", "SCB", "bias")}
    same(int8_linear(**{**given, **other}), int8_linear(**given))


@every_isa
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_nan_in_a_row_of_activations_stays_there(threshold):
    for dtype in DTYPES:
        given = {**arguments("int8_linear", dtype=dtype), "threshold": threshold}
        expected = int8_linear(**given)
        given["A"][1, 33] = math.nan
        out = int8_linear(**given)
        assert out[1].isnan().all()
        rows = torch.tensor([0, 2])
        same(out[rows], expected[rows])


@every_isa
def test_nan_in_a_scale_stays_in_its_column():
    given = arguments("int8_linear")
    expected = int8_linear(**given)
    given["SCB"][2] = expected[:, 2] = math.nan
    same(int8_linear(**given), expected)


WRONG = [
    ("A", {"A": torch.ones(3, 70, dtype=torch.int8)}),
    ("A", {"A": torch.ones(3, 71)}),
    ("A", {"A": torch.tensor(1.0)}),
    ("A", {"A": torch.zeros(1, 2**17), "CB": torch.zeros(5, 2**17, dtype=torch.int8)}),
    ("CB", {"CB": torch.ones(5, 70, dtype=torch.uint8)}),
    ("CB", {"CB": torch.ones(350, dtype=torch.int8)}),
    ("CB", {"CB": torch.ones(5, 70, dtype=torch.int8, device="meta")}),
    ("SCB", {"SCB": torch.ones(6)}),
    ("SCB", {"SCB": torch.ones(5, dtype=torch.float16)}),
    ("SCB", {"SCB": torch.ones(5, device="meta")}),
    ("threshold", {"threshold": -6.0}),
    ("threshold", {"threshold": math.nan}),
    ("bias", {"bias": torch.ones(4)}),
    ("bias", {"bias": torch.ones(5, dtype=torch.float64)}),
    ("bias", {"bias": torch.ones(5, device="meta")}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("int8_linear", argument, **changed)
