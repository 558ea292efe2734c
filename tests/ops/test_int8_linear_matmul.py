"""int8_linear_matmul: an exact product of int8 matrices."""

from __future__ import annotations

import pytest
import torch

from bnbx.backends import reference
from bnbx.ops import MAX_INT8_DEPTH

from .checks import every_isa, refuses, run, same, strided

int8_linear_matmul = torch.ops.bnbx.int8_linear_matmul

SHAPES = [
    *((M, 5, 70) for M in (0, 1, 2, 3, 4, 5, 9, 17, 33)),
    *((3, N, 64) for N in (0, 1, 2, 3, 4, 7, 16, 33, 70)),
    *((2, 6, K) for K in (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 127, 128, 129, 1025, 2051)),
    *((1, 70, 1025), (33, 65, 300), (9, 300, 64), (17, 40, 1100)),
]


def random_int8(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def check(A, B):
    out = int8_linear_matmul(A, B)
    same(out, (A.long() @ B.long().t()).int())
    same(out, reference.int8_linear_matmul(A, B))


@every_isa
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_product(M, N, K):
    check(random_int8(M, K), random_int8(N, K))


@every_isa
@pytest.mark.parametrize(("a", "b"), [(-128, -128), (-128, 127), (127, 127), (-1, -128)])
def test_extreme_values(a, b):
    for K in (70, 4097, MAX_INT8_DEPTH):
        A = torch.full((3, K), a, dtype=torch.int8)
        check(A, torch.full((5, K), b, dtype=torch.int8))


@every_isa
def test_leading_dimensions():
    B = random_int8(5, 70)
    for shape in ((70,), (2, 3, 70), (2, 0, 70), (1, 2, 2, 70)):
        check(random_int8(*shape), B)


@every_isa
def test_out():
    A, B = random_int8(3, 70), random_int8(5, 70)
    out = torch.full((3, 5), 9, dtype=torch.int32)
    assert run("int8_linear_matmul.out", A=A, B=B, out=out) is None
    same(out, int8_linear_matmul(A, B))


@every_isa
def test_strides_do_not_matter():
    A, B = random_int8(70, 3), random_int8(70, 5)
    expected = int8_linear_matmul(A.t().contiguous(), B.t().contiguous())
    same(int8_linear_matmul(A.t(), B.t()), expected)
    same(int8_linear_matmul(strided(A.t()), strided(B.t())), expected)


WRONG = [
    ("A", {"A": torch.ones(3, 70)}),
    ("A", {"A": torch.ones(3, 71, dtype=torch.int8)}),
    ("A", {"A": torch.tensor(1, dtype=torch.int8)}),
    ("A", {name: torch.zeros(1, 2**17, dtype=torch.int8) for name in ("A", "B")}),
    ("B", {"B": torch.ones(5, 70, dtype=torch.uint8)}),
    ("B", {"B": torch.ones(70, dtype=torch.int8)}),
    ("B", {"B": torch.ones(1, 5, 70, dtype=torch.int8)}),
    ("B", {"B": torch.ones(5, 70, dtype=torch.int8, device="meta")}),
]
WRONG_OUT = [
    *WRONG,
    ("out", {"out": torch.empty(3, 5)}),
    ("out", {"out": torch.empty(5, 3, dtype=torch.int32)}),
    ("out", {"out": torch.empty(5, 3, dtype=torch.int32).t()}),
    ("out", {"out": torch.empty(3, 5, dtype=torch.int32, device="meta")}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("int8_linear_matmul", argument, **changed)


@pytest.mark.parametrize(("argument", "changed"), WRONG_OUT)
def test_out_refuses(argument, changed):
    refuses("int8_linear_matmul.out", argument, **changed)
