"""gemm_4bit: activations times the transpose of a 4-bit weight."""

from __future__ import annotations

import functools
import itertools
import math
import sys

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import (
    BLOCKSIZES,
    DTYPES,
    NOT_FINITE,
    QUANT_TYPES,
    every_isa,
    refuses,
    same,
    strided,
)
from .weights import check_product, random_weight

gemm_4bit = torch.ops.bnbx.gemm_4bit

#: (M, N, K): below and above the tiles of any kernel, K even and odd, rows that start in the middle
#: of a byte or a block, and more than one thread's share.
SHAPES = [
    *((M, 5, 70) for M in (0, 1, 2, 3, 4, 5, 8, 9, 17, 35)),
    *((3, N, 64) for N in (0, 1, 2, 3, 4, 7, 16, 33, 70)),
    *((2, 6, K) for K in (0, 1, 2, 3, 15, 31, 32, 33, 63, 65, 100, 191, 257, 1024, 1025, 2051)),
    *((M, 9, 192) for M in (1, 2, 3, 4, 5, 16, 33)),
    *((1, 70, 1025), (9, 130, 513), (33, 65, 300), (17, 300, 64), (130, 70, 320), (130, 33, 515)),
    (200, 70, 320),
    # Deep enough for blocks of a GPU to share the depth.
    *((5, 30, 2051), (7, 30, 4128), (20, 33, 2080), (70, 30, 2144)),
]


@functools.cache
def products(M, N, K):
    """Return calls of gemm_4bit, each with the weight that its arguments mean."""
    plain, state = random_weight(N, K, 64, "nf4")
    nested, nested_state = random_weight(N, K, 32, "fp4", 256)
    calls = []
    for dtype in DTYPES:
        A, bias = torch.randn(M, K).to(dtype), torch.randn(N).to(dtype)
        calls.append(({"A": A, "bias": bias, **state}, plain))
        calls.append(({"A": A, **nested_state}, nested))
    for given, weight in calls:
        check_product(reference.gemm_4bit(**given), given["A"], weight, given.get("bias"))
    return calls


@every_isa
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_product(M, N, K):
    for given, weight in products(M, N, K):
        check_product(gemm_4bit(**given), given["A"], weight, given.get("bias"))


@every_isa
@pytest.mark.parametrize("autocast", [False, True])
def test_many_rows_take_the_weight_in_slices(monkeypatch, isa, autocast):
    monkeypatch.setattr("bnbx.backends.cpu._SLICE_BYTES", 1)
    weight, state = random_weight(301, 70, 128, "nf4", 256)
    for dtype in DTYPES:
        A, bias = torch.randn(2, 100, 70).to(dtype), torch.randn(301).to(dtype)
        with torch.autocast("cpu", enabled=autocast):
            out = gemm_4bit(A, **state, bias=bias)
        assert out.shape == (2, 100, 301)
        check_product(out, A, weight, bias)
        if isa != "reference":  # torch rounds the product of a strided matrix differently
            same(gemm_4bit(strided(A), **state, bias=bias), out)


@every_isa
@pytest.mark.parametrize("M", [1, 4, 17])
def test_activations_of_very_different_size(M):
    weight, state = random_weight(33, 512, 64, "nf4")
    for dtype in DTYPES:
        size = torch.logspace(-4, 3, 512)[torch.randperm(512)]
        A = (torch.randn(M, 512) * size).to(dtype)
        A[:, 64:128] = 0.0
        check_product(gemm_4bit(A, **state), A, weight)


@every_isa
def test_a_row_does_not_depend_on_the_others():
    _, state = random_weight(33, 512, 64, "nf4")
    for dtype in DTYPES:
        A = torch.randn(3, 512).to(dtype)
        clean = gemm_4bit(A, **state)
        A[1, 7] = float("inf")
        out = gemm_4bit(A, **state)
        same(out[::2], clean[::2])
        assert not out[1].isfinite().any()


@every_isa
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_blocksizes(blocksize):
    for dtype, quant_type, (M, K) in itertools.product(
        DTYPES, QUANT_TYPES, ((1, 517), (1, 512), (9, 512))
    ):
        A = torch.randn(M, K).to(dtype)
        weight, state = random_weight(19, K, blocksize, quant_type)
        check_product(gemm_4bit(A, **state), A, weight)


@every_isa
@pytest.mark.parametrize("nested_blocksize", [1, 7, 64, 255, 256, 4096, sys.maxsize])
def test_blocksizes_of_the_nested_absmax(nested_blocksize):
    for dtype, (M, K, blocksize) in itertools.product(
        DTYPES, ((2, 130, 32), (2, 192, 64), (9, 192, 64), (9, 256, 128))
    ):
        A = torch.randn(M, K).to(dtype)
        weight, state = random_weight(70, K, blocksize, "nf4", nested_blocksize)
        check_product(gemm_4bit(A, **state), A, weight)
        check_product(reference.gemm_4bit(A, **state), A, weight)


@every_isa
def test_leading_dimensions():
    weight, state = random_weight(5, 70, 64)
    for shape in ((70,), (1, 70), (2, 3, 70), (2, 0, 70), (1, 2, 2, 70)):
        A = torch.randn(shape)
        out = gemm_4bit(A, **state)
        assert out.shape == (*shape[:-1], 5)
        check_product(out.view(math.prod(shape[:-1]), 5), A.view(math.prod(shape[:-1]), 70), weight)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    given = arguments("gemm_4bit", dtype=dtype)
    names = ("A", "B", "absmax", "bias", "absmax_8bit", "absmax_code")
    other = {name: strided(given[name]) for name in names}
    same(gemm_4bit(**{**given, **other}), gemm_4bit(**given))
    same(gemm_4bit(**{**given, "A": given["A"].t().contiguous().t()}), gemm_4bit(**given))


@every_isa
def test_every_storage_holds_the_same_bytes():
    A, weight = torch.randn(3, 71), torch.randn(5, 71)
    packed, absmax = reference.quantize_4bit(weight, 64, "nf4", torch.uint8)
    expected = gemm_4bit(A, packed, [5, 71], absmax, 64, "nf4")
    for quant_storage in DTYPES:
        stored, _ = reference.quantize_4bit(weight, 64, "nf4", quant_storage)
        same(gemm_4bit(A, stored, [5, 71], absmax, 64, "nf4"), expected)


@every_isa
def test_zero_blocks_add_nothing():
    for dtype in DTYPES:
        A = torch.randn(3, 128).to(dtype)
        weight, state = random_weight(5, 128, 64)
        state["absmax"][::2] = 0.0
        weight[:, :64] = 0.0
        check_product(gemm_4bit(A, **state), A, weight)


@every_isa
@pytest.mark.parametrize("M", [1, 3, 20])
@pytest.mark.parametrize(("K", "touched"), [(70, {2, 3}), (128, {1})])
def test_nan_in_a_block_reaches_its_rows_alone(M, K, touched):
    rows = torch.tensor([n not in touched for n in range(9)])
    for dtype in DTYPES:
        A = torch.randn(M, K).to(dtype)
        weight, state = random_weight(9, K, 64)
        state["absmax"][3] = math.nan  # elements 192 to 255
        out = gemm_4bit(A, **state)
        assert out[:, ~rows].isnan().all()
        check_product(out[:, rows], A, weight[rows])


@every_isa
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_nan_and_infinity_in_a_row_of_activations_stay_there(bad):
    for dtype, (M, K) in itertools.product(DTYPES, ((3, 70), (3, 128), (20, 70), (20, 128))):
        A = torch.randn(M, K).to(dtype)
        weight, state = random_weight(9, K, 64)
        rows = torch.arange(M) != 2
        A[2, 33] = bad
        out = gemm_4bit(A, **state)
        assert not out[2].isfinite().any()
        check_product(out[rows], A[rows], weight)


WRONG = [
    ("A", {"A": torch.ones(3, 70, dtype=torch.float64)}),
    ("A", {"A": torch.ones(3, 71)}),
    ("A", {"A": torch.tensor(1.0)}),
    ("B", {"B": torch.zeros(175, 1, dtype=torch.int8)}),
    ("B", {"B": torch.zeros(174, 1, dtype=torch.uint8)}),
    ("B", {"B": torch.zeros(179, 1, dtype=torch.uint8)}),
    ("B", {"B": torch.zeros(175, 1, dtype=torch.uint8, device="meta")}),
    ("B", {"shapeB": [6, 70]}),
    ("B", {"shapeB": [-5, 70]}),
    ("shapeB", {"shapeB": [350]}),
    ("shapeB", {"shapeB": [5, 7, 10]}),
    ("absmax", {"absmax": torch.ones(2)}),
    ("absmax", {"absmax": torch.ones(1, dtype=torch.bfloat16)}),
    ("absmax", {"absmax_8bit": None}),
    ("blocksize", {"blocksize": -64}),
    ("blocksize", {"blocksize": 100}),
    ("quant_type", {"quant_type": "int8"}),
    ("bias", {"bias": torch.ones(5, dtype=torch.float16)}),
    ("bias", {"bias": torch.ones(6)}),
    ("bias", {"bias": torch.ones(1, 5)}),
    ("absmax_8bit", {"absmax_8bit": torch.zeros(5, dtype=torch.uint8)}),
    ("absmax_8bit", {"absmax_8bit": torch.zeros(6, dtype=torch.int8)}),
    ("absmax_8bit", {"absmax_8bit": torch.zeros(6, dtype=torch.uint8, device="meta")}),
    ("absmax_code", {"absmax_code": None}),
    ("absmax_code", {"absmax_code": torch.zeros(16)}),
    ("absmax_code", {"absmax_code": torch.zeros(256, dtype=torch.float16)}),
    ("absmax_offset", {"absmax_offset": None}),
    ("absmax_offset", {"absmax_offset": torch.zeros(2)}),
    ("absmax_offset", {"absmax_offset": torch.zeros((), dtype=torch.float64)}),
    ("absmax_blocksize", {"absmax_blocksize": 0}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("gemm_4bit", argument, **changed)
