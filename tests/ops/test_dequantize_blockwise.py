"""dequantize_blockwise: the codebook's entry of each code times the absmax of its block."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments

from .checks import CODEBOOKS, DTYPES, SIZES, every_isa, per_element, refuses, run, same, strided

dequantize_blockwise = torch.ops.bnbx.dequantize_blockwise
DYNAMIC = CODEBOOKS["dynamic"]


def check(codes, absmax, code, blocksize):
    flat = codes.flatten()
    expected = code[flat.int()] * per_element(absmax, blocksize, flat.numel())
    for dtype in DTYPES:
        out = dequantize_blockwise(codes, absmax, code, blocksize, dtype)
        same(out, expected.view(codes.shape).to(dtype))
        same(out, reference.dequantize_blockwise(codes, absmax, code, blocksize, dtype))


def random_state(size, blocksize):
    return torch.randint(256, (size,), dtype=torch.uint8), torch.rand(-(-size // blocksize)) * 3


@every_isa
@pytest.mark.parametrize("name", CODEBOOKS)
def test_entry_times_absmax(name):
    check(*random_state(701, 64), CODEBOOKS[name], 64)


@every_isa
def test_any_codebook():
    check(*random_state(701, 64), torch.randn(256), 64)  # decoding asks for no order


@every_isa
@pytest.mark.parametrize("blocksize", [1, 7, 64, 100, 255, 256, 4096, sys.maxsize])
def test_blocksizes(blocksize):
    check(*random_state(5001, blocksize), DYNAMIC, blocksize)


@every_isa
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    check(*random_state(size, 64), DYNAMIC, 64)


@every_isa
def test_shapes():
    for shape in ((), (3, 5), (7, 1, 33), (4, 0), (0, 4)):
        codes, absmax = random_state(math.prod(shape), 64)
        check(codes.view(shape), absmax, DYNAMIC, 64)


@every_isa
def test_out():
    for dtype in DTYPES:
        given = arguments("dequantize_blockwise", dtype=dtype)
        out = torch.full((5, 70), 9.0, dtype=dtype)
        assert run("dequantize_blockwise.out", **given, out=out) is None
        same(out, dequantize_blockwise(**given))


@every_isa
@pytest.mark.parametrize("blocksize", [64, 100])
def test_slices_that_start_anywhere(blocksize):
    codes, absmax = random_state(20_001, blocksize)
    for dtype in DTYPES:
        for start in (1, 4):
            A, scales = codes[start:19_000], absmax[: -(-(19_000 - start) // blocksize)]
            out = torch.full((20_001,), 9.0, dtype=dtype)
            given = {"A": A, "absmax": scales, "code": DYNAMIC, "blocksize": blocksize}
            run("dequantize_blockwise.out", **given, dtype=dtype, out=out[start:19_000])
            same(out[start:19_000], reference.dequantize_blockwise(**given, dtype=dtype))
            assert (out[:start] == 9.0).all()
            assert (out[19_000:] == 9.0).all()


@every_isa
def test_strides_do_not_matter():
    codes, absmax = random_state(33 * 47, 64)
    codes = codes.view(33, 47)
    expected = dequantize_blockwise(codes.t().contiguous(), absmax, DYNAMIC, 64, torch.float32)
    for other in (codes.t(), strided(codes.t())):
        given = (other, strided(absmax), strided(DYNAMIC), 64, torch.float32)
        same(dequantize_blockwise(*given), expected)


@every_isa
@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, 1e-42, 1e-38, 3e38])
def test_extreme_absmax(scale):
    codes, absmax = random_state(201, 64)
    absmax[1] = scale
    check(codes, absmax, DYNAMIC, 64)
    out = dequantize_blockwise(codes, absmax, DYNAMIC, 64, torch.float32)
    assert out[64:128].isnan().all() == math.isnan(scale)
    assert not out[:64].isnan().any()
    assert not out[128:].isnan().any()


WRONG = [
    ("A", {"A": torch.zeros(5, 70, dtype=torch.int8)}),
    ("absmax", {"absmax": torch.ones(1)}),
    ("absmax", {"absmax": torch.ones(3)}),
    ("absmax", {"absmax": torch.ones(2, dtype=torch.float64)}),
    ("absmax", {"absmax": torch.ones(2, device="meta")}),
    ("absmax", {"blocksize": 100}),
    ("code", {"code": torch.ones(16)}),
    ("code", {"code": torch.ones(256, dtype=torch.bfloat16)}),
    ("code", {"code": torch.ones(256, device="meta")}),
    ("blocksize", {"blocksize": 0}),
    ("dtype", {"dtype": torch.float64}),
    ("dtype", {"dtype": torch.uint8}),
]
WRONG_OUT = [
    *WRONG,
    ("out", {"out": torch.empty(5, 70, dtype=torch.bfloat16)}),
    ("out", {"out": torch.empty(5, 71)}),
    ("out", {"out": torch.empty(70, 5).t()}),
    ("out", {"out": torch.empty(5, 70, device="meta")}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("dequantize_blockwise", argument, **changed)


@pytest.mark.parametrize(("argument", "changed"), WRONG_OUT)
def test_out_refuses(argument, changed):
    refuses("dequantize_blockwise.out", argument, **changed)
