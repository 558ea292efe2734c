"""gemm_4bit_grouped and its transpose: groups of rows times 4-bit weights of their own."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import BLOCKSIZES, DTYPES, QUANT_TYPES, every_isa, is_for_gpus, refuses, same, strided
from .weights import check_product, random_weight

gemm_4bit_grouped = torch.ops.bnbx.gemm_4bit_grouped
gemm_4bit_grouped_transposed = torch.ops.bnbx.gemm_4bit_grouped_transposed

#: Rows of each expert: none, one, few, more than a tile and more than BLAS needs, in any order.
ROWS = [
    (1,),
    (0, 0, 0),
    (1, 0, 2, 1, 0),
    (0, 3, 0, 4, 5),
    (17, 1, 0, 33),
    (2, 70, 1, 0, 200),
    (200, 0, 1),
]
#: (N, K): rows that begin in the middle of a byte, a block or a group, columns that are no multiple
#: of what a thread gets.
SIZES = [(5, 70), (1, 1), (33, 65), (7, 3), (130, 64), (70, 192), (65, 320)]


def random_stack(E, N, K, blocksize=64, quant_type="nf4", nested_blocksize=None):
    """Return the weights that random codes and scales mean, and the arguments that describe them.

    The blocks are those of the flattened stack: they may belong to two weights.
    """
    weight, state = random_weight(E * N, K, blocksize, quant_type, nested_blocksize)
    return weight.view(E, N, K), {**state, "shapeB": [E, N, K]}


def offsets_of(rows, dtype=torch.int64):
    return torch.tensor(list(itertools.accumulate(rows)), dtype=dtype)


def check(out, A, weights, rows, bias=None):
    """Compare each group with a product of its own; what lies behind the groups is 0."""
    begin = 0
    for e, count in enumerate(rows):
        part = slice(begin, begin + count)
        check_product(out[part], A[part], weights[e], None if bias is None else bias[e])
        begin += count
    assert len(out) == len(A)
    assert (out[begin:] == 0).all()


@every_isa
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize(("N", "K"), SIZES)
def test_product(rows, N, K):
    for dtype, nested in itertools.product(DTYPES, (None, 256)):
        weights, state = random_stack(len(rows), N, K, nested_blocksize=nested)
        bias = torch.randn(len(rows), N).to(dtype) if nested is None else None
        offsets = offsets_of(rows, torch.int64 if nested is None else torch.int32)
        A = torch.randn(sum(rows), K).to(dtype)
        given = {"A": A, **state, "offsets": offsets, "bias": bias}
        check(gemm_4bit_grouped(**given), A, weights, rows, bias)
        check(reference.gemm_4bit_grouped(**given), A, weights, rows, bias)


@every_isa
@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize(("N", "K"), SIZES)
def test_transposed_product(rows, N, K):
    for dtype, nested in itertools.product(DTYPES, (None, 256)):
        weights, state = random_stack(len(rows), N, K, nested_blocksize=nested)
        A = torch.randn(sum(rows), N).to(dtype)
        given = {"A": A, **state, "offsets": offsets_of(rows)}
        check(gemm_4bit_grouped_transposed(**given), A, weights.mT, rows)
        check(reference.gemm_4bit_grouped_transposed(**given), A, weights.mT, rows)


@every_isa
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_blocksizes(blocksize):
    rows = (3, 0, 9)
    for dtype, quant_type, K in itertools.product(DTYPES, QUANT_TYPES, (192, 131)):
        weights, state = random_stack(3, 19, K, blocksize, quant_type, 7)
        A = torch.randn(12, K).to(dtype)
        check(gemm_4bit_grouped(A, **state, offsets=offsets_of(rows)), A, weights, rows)


@every_isa
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_number_of_threads_does_not_matter(threads):
    rows = (1, 0, 40, 2, 3, 1, 0, 0, 7)
    for dtype in DTYPES:
        weights, state = random_stack(len(rows), 330, 192, nested_blocksize=256)
        calls = [
            (gemm_4bit_grouped, weights, torch.randn(sum(rows) + 2, 192).to(dtype)),
            (gemm_4bit_grouped_transposed, weights.mT, torch.randn(sum(rows) + 2, 330).to(dtype)),
        ]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for multiply, matrices, A in calls:
                check(multiply(A, **state, offsets=offsets_of(rows)), A, matrices, rows)
        finally:
            torch.set_num_threads(before)


@every_isa
def test_one_group_is_a_plain_product():
    _, state = random_stack(1, 70, 192)
    plain = {**state, "shapeB": [70, 192]}
    for dtype, M in itertools.product(DTYPES, (1, 3, 20, 70)):
        A, offsets = torch.randn(M, 192).to(dtype), torch.tensor([M])
        out = torch.ops.bnbx.gemm_4bit(A, **plain)
        same(gemm_4bit_grouped(A, **state, offsets=offsets), out)
        A = torch.randn(M, 70).to(dtype)
        out = torch.ops.bnbx.gemm_4bit_transposed(A, **plain)
        same(gemm_4bit_grouped_transposed(A, **state, offsets=offsets), out)


@every_isa
def test_no_experts_no_columns_and_no_depth():
    for E, N, K, T in ((0, 5, 64, 3), (2, 0, 64, 3), (2, 5, 0, 3), (2, 5, 64, 0)):
        _, state = random_stack(E, N, K)
        offsets = torch.full((E,), T)
        for dtype in DTYPES:
            bias = torch.randn(E, N).to(dtype)
            A = torch.randn(T, K).to(dtype)
            out = gemm_4bit_grouped(A, **state, offsets=offsets, bias=bias)
            expected = bias[:1].expand(T, N) if E and not K else torch.zeros(T, N, dtype=dtype)
            same(out, expected)
            A = torch.randn(T, N).to(dtype)
            out = gemm_4bit_grouped_transposed(A, **state, offsets=offsets)
            same(out, torch.zeros(T, K, dtype=dtype))


@every_isa
def test_nan_in_a_weight_reaches_its_expert_alone():
    rows = (2, 3, 20)
    for dtype in DTYPES:
        A = torch.randn(25, 128).to(dtype)
        weights, state = random_stack(3, 9, 128)
        state["absmax"][18:36] = math.nan
        out = gemm_4bit_grouped(A, **state, offsets=offsets_of(rows))
        assert out[2:5].isnan().all()
        check_product(out[:2], A[:2], weights[0])
        check_product(out[5:], A[5:], weights[2])


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    rows = (2, 0, 5)
    _, state = random_stack(3, 6, 96, nested_blocksize=256)
    bias, A = torch.randn(3, 6).to(dtype), torch.randn(7, 96).to(dtype)
    given = {"A": A, "bias": bias, "offsets": offsets_of(rows), **state}
    names = ("A", "B", "absmax", "bias", "absmax_8bit", "absmax_code", "offsets")
    other = {name: strided(given[name]) for name in names}
    same(gemm_4bit_grouped(**{**given, **other}), gemm_4bit_grouped(**given))


BAD_OFFSETS = [[-1, 3], [2, 1], [1, 4], [4, 4], [2**40, 2**40]]


@pytest.mark.parametrize("ends", BAD_OFFSETS, ids=str)
def test_offsets_that_leave_the_rows(isa, ends):
    _, state = random_stack(2, 5, 64)
    A = {gemm_4bit_grouped: torch.randn(3, 64), gemm_4bit_grouped_transposed: torch.randn(3, 5)}
    for multiply, rows in A.items():
        if is_for_gpus(isa):  # kernels that cannot refuse what they find
            first = min(max(ends[0], 0), 3)
            meant = torch.tensor([first, min(max(ends[1], first), 3)])
            out = multiply(rows, **state, offsets=torch.tensor(ends))
            same(out, multiply(rows, **state, offsets=meant))
            continue
        with pytest.raises(ValueError, match=r"^offsets: expected ascending numbers from 0 to 3"):
            multiply(rows, **state, offsets=torch.tensor(ends))


WRONG = [
    ("A", {"A": torch.ones(3, 70, dtype=torch.float64)}),
    ("A", {"A": torch.ones(3, 71)}),
    ("A", {"A": torch.ones(70)}),
    ("A", {"A": torch.ones(1, 3, 70)}),
    ("B", {"B": torch.zeros(175, 1, dtype=torch.int8)}),
    ("B", {"B": torch.zeros(174, 1, dtype=torch.uint8)}),
    ("B", {"shapeB": [2, 5, 70]}),
    ("shapeB", {"shapeB": [5, 70]}),
    ("shapeB", {"shapeB": [-1, -5, 70]}),
    ("absmax", {"absmax_8bit": None}),
    ("blocksize", {"blocksize": 100}),
    ("quant_type", {"quant_type": "int8"}),
    ("offsets", {"offsets": torch.tensor([3, 3])}),
    ("offsets", {"offsets": torch.tensor(3)}),
    ("offsets", {"offsets": torch.tensor([3.0])}),
    ("offsets", {"offsets": torch.tensor([3], dtype=torch.uint8)}),
    ("offsets", {"offsets": torch.tensor([3], device="meta")}),
    ("bias", {"bias": torch.ones(5)}),
    ("bias", {"bias": torch.ones(1, 6)}),
    ("bias", {"bias": torch.ones(1, 5, dtype=torch.float16)}),
    ("absmax_8bit", {"absmax_8bit": torch.zeros(5, dtype=torch.uint8)}),
    ("absmax_code", {"absmax_code": None}),
    ("absmax_offset", {"absmax_offset": None}),
    ("absmax_blocksize", {"absmax_blocksize": 0}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("gemm_4bit_grouped", argument, **changed)
    if "bias" not in changed and argument != "A":
        refuses("gemm_4bit_grouped_transposed", argument, **changed)


def test_the_transposed_product_refuses_rows_of_the_other_length():
    given = arguments("gemm_4bit_grouped")
    refuses("gemm_4bit_grouped_transposed", "A", A=given["A"])
