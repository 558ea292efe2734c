"""gemm_4bit_transposed: the gradient of gemm_4bit with respect to its activations."""

from __future__ import annotations

import functools
import itertools
import math
import sys

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import BLOCKSIZES, DTYPES, NOT_FINITE, QUANT_TYPES, every_isa, refuses, same, strided
from .weights import check_product, random_weight

gemm_4bit_transposed = torch.ops.bnbx.gemm_4bit_transposed

#: (M, N, K), as in the tests of gemm_4bit: here the sums run over N.
SHAPES = [
    *((M, 5, 70) for M in (0, 1, 2, 3, 4, 5, 9, 17, 35)),
    *((3, N, 64) for N in (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 70)),
    *((2, 6, K) for K in (0, 1, 2, 3, 15, 31, 33, 63, 65, 100, 191, 257, 1024, 1025)),
    *((M, 9, 192) for M in (1, 4, 16, 33)),
    *((1, 70, 1025), (9, 130, 513), (17, 300, 64), (35, 290, 704), (130, 33, 515), (200, 70, 320)),
    # Deep enough for blocks of a GPU to share the depth.
    *((5, 2051, 31), (7, 4128, 64), (70, 2080, 64)),
]


@functools.cache
def products(M, N, K):
    """Return calls of the operation, each with the weight that its arguments mean."""
    plain, state = random_weight(N, K, 64, "nf4")
    nested, nested_state = random_weight(N, K, 32, "fp4", 256)
    calls = []
    for dtype in DTYPES:
        A = torch.randn(M, N).to(dtype)
        calls += [({"A": A, **state}, plain.t()), ({"A": A, **nested_state}, nested.t())]
    for given, weight in calls:
        check_product(reference.gemm_4bit_transposed(**given), given["A"], weight)
    return calls


@every_isa
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_product(M, N, K):
    for given, weight in products(M, N, K):
        check_product(gemm_4bit_transposed(**given), given["A"], weight)


@every_isa
@pytest.mark.parametrize("autocast", [False, True])
def test_many_rows_take_the_weight_in_slices(monkeypatch, isa, autocast):
    monkeypatch.setattr("bnbx.backends.cpu._SLICE_BYTES", 1)
    weight, state = random_weight(301, 70, 128, "nf4", 256)
    for dtype in DTYPES:
        A = torch.randn(2, 100, 301).to(dtype)
        with torch.autocast("cpu", enabled=autocast):
            out = gemm_4bit_transposed(A, **state)
        assert out.shape == (2, 100, 70)
        check_product(out, A, weight.t())
        if isa != "reference":  # torch rounds the product of a strided matrix differently
            same(gemm_4bit_transposed(strided(A), **state), out)


@every_isa
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_blocksizes(blocksize):
    for dtype, quant_type, (M, K) in itertools.product(
        DTYPES, QUANT_TYPES, ((1, 517), (1, 512), (9, 512))
    ):
        A = torch.randn(M, 19).to(dtype)
        weight, state = random_weight(19, K, blocksize, quant_type)
        check_product(gemm_4bit_transposed(A, **state), A, weight.t())


@every_isa
@pytest.mark.parametrize("nested_blocksize", [1, 7, 64, 255, 256, 4096, sys.maxsize])
def test_blocksizes_of_the_nested_absmax(nested_blocksize):
    for dtype, (K, blocksize) in itertools.product(DTYPES, ((130, 32), (192, 64), (256, 128))):
        A = torch.randn(2, 70).to(dtype)
        weight, state = random_weight(70, K, blocksize, "nf4", nested_blocksize)
        check_product(gemm_4bit_transposed(A, **state), A, weight.t())


@every_isa
def test_it_is_the_gradient():
    A, weight_gradient = torch.randn(3, 70, requires_grad=True), torch.randn(3, 5)
    weight, state = random_weight(5, 70, 64)
    torch.nn.functional.linear(A, weight).backward(weight_gradient)
    torch.testing.assert_close(gemm_4bit_transposed(weight_gradient, **state), A.grad)


@every_isa
def test_leading_dimensions():
    weight, state = random_weight(5, 70, 64)
    for shape in ((5,), (1, 5), (2, 3, 5), (2, 0, 5), (1, 2, 2, 5)):
        A = torch.randn(shape)
        out = gemm_4bit_transposed(A, **state)
        assert out.shape == (*shape[:-1], 70)
        check_product(out.view(-1, 70), A.view(-1, 5), weight.t())


@every_isa
def test_strides_do_not_matter():
    for dtype in DTYPES:
        given = arguments("gemm_4bit_transposed", dtype=dtype)
        names = ("A", "B", "absmax", "absmax_8bit", "absmax_code")
        other = {name: strided(given[name]) for name in names}
        same(gemm_4bit_transposed(**{**given, **other}), gemm_4bit_transposed(**given))


@every_isa
def test_every_storage_holds_the_same_bytes():
    A, weight = torch.randn(3, 5), torch.randn(5, 71)
    packed, absmax = reference.quantize_4bit(weight, 64, "nf4", torch.uint8)
    expected = gemm_4bit_transposed(A, packed, [5, 71], absmax, 64, "nf4")
    for quant_storage in DTYPES:
        stored, _ = reference.quantize_4bit(weight, 64, "nf4", quant_storage)
        same(gemm_4bit_transposed(A, stored, [5, 71], absmax, 64, "nf4"), expected)


@every_isa
@pytest.mark.parametrize("K", [70, 128])
def test_nan_in_a_block_reaches_its_columns_alone(K):
    places = torch.zeros(9 * K, dtype=torch.bool)
    places[192:256] = True
    columns = places.view(9, K).any(dim=0)
    for dtype, M in itertools.product(DTYPES, (1, 20)):
        A = torch.randn(M, 9).to(dtype)
        weight, state = random_weight(9, K, 64)
        state["absmax"][3] = math.nan
        out = gemm_4bit_transposed(A, **state)
        assert out[:, columns].isnan().all()
        check_product(out[:, ~columns], A, weight[:, ~columns].t())


@every_isa
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_nan_and_infinity_in_a_row_stay_there(bad):
    for dtype, (M, K) in itertools.product(DTYPES, ((3, 70), (3, 128), (20, 70), (20, 128))):
        A = torch.randn(M, 9).to(dtype)
        weight, state = random_weight(9, K, 64)
        rows = torch.arange(M) != 2
        A[2, 3] = bad
        out = gemm_4bit_transposed(A, **state)
        assert not out[2].isfinite().any()
        check_product(out[rows], A[rows], weight.t())


WRONG = [
    ("A", {"A": torch.ones(3, 5, dtype=torch.int8)}),
    ("A", {"A": torch.ones(3, 70)}),
    ("A", {"A": torch.tensor(1.0)}),
    ("B", {"B": torch.zeros(175, 1, dtype=torch.int8)}),
    ("B", {"B": torch.zeros(174, 1, dtype=torch.uint8)}),
    ("B", {"B": torch.zeros(175, 1, dtype=torch.uint8, device="meta")}),
    ("B", {"shapeB": [6, 70]}),
    ("shapeB", {"shapeB": [350]}),
    ("absmax", {"absmax": torch.ones(2)}),
    ("absmax", {"absmax": torch.ones(1, dtype=torch.float16)}),
    ("absmax", {"absmax_8bit": None}),
    ("blocksize", {"blocksize": 63}),
    ("quant_type", {"quant_type": "af4"}),
    ("absmax_8bit", {"absmax_8bit": torch.zeros(7, dtype=torch.uint8)}),
    ("absmax_8bit", {"absmax_8bit": torch.zeros(6, dtype=torch.int32)}),
    ("absmax_code", {"absmax_code": None}),
    ("absmax_code", {"absmax_code": torch.zeros(255)}),
    ("absmax_offset", {"absmax_offset": None}),
    ("absmax_offset", {"absmax_offset": torch.zeros(0)}),
    ("absmax_blocksize", {"absmax_blocksize": -1}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("gemm_4bit_transposed", argument, **changed)
