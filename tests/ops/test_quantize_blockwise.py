"""quantize_blockwise: the nearest of 256 ascending entries in units of the block's absmax."""

from __future__ import annotations

import sys

import pytest
import torch

from bnbx.backends import reference

from .checks import (
    CODEBOOKS,
    DTYPES,
    NOT_FINITE,
    SIZES,
    absmax_of,
    assert_nearest,
    every_isa,
    is_for_gpus,
    refuses,
    same,
    strided,
    values,
)

quantize_blockwise = torch.ops.bnbx.quantize_blockwise
DYNAMIC = CODEBOOKS["dynamic"]


def check(A, code, blocksize):
    codes, absmax = quantize_blockwise(A, code, blocksize)
    assert codes.shape == A.shape
    same(absmax, absmax_of(A, blocksize))
    assert_nearest(code[codes.flatten().int()], A, absmax, code, blocksize)
    same((codes, absmax), reference.quantize_blockwise(A, code, blocksize))


@every_isa
@pytest.mark.parametrize("name", CODEBOOKS)
def test_nearest_entry_wins(name):
    for dtype in DTYPES:
        check(values(700, dtype), CODEBOOKS[name], 256)


@every_isa
@pytest.mark.parametrize("name", CODEBOOKS)
def test_every_magnitude(name):
    tiny_to_one = torch.logspace(-38, 0, 600)
    check(torch.cat([tiny_to_one, -tiny_to_one]), CODEBOOKS[name], 2000)


@every_isa
@pytest.mark.parametrize("name", CODEBOOKS)
def test_half_way_takes_the_lower_entry(name):
    code = CODEBOOKS[name]
    middle = ((code[:-1] + code[1:]) / 2).clamp(-1.0, 1.0)
    for A in (middle, middle.nextafter(torch.tensor(2.0)), middle.nextafter(torch.tensor(-2.0))):
        scaled = torch.cat([A.clamp(-1.0, 1.0), torch.ones(1)])
        codes, absmax = quantize_blockwise(scaled, code, 256)
        bounds = (code[:-1] + code[1:]) / 2
        lower = torch.tensor([int((bounds < x).sum()) for x in scaled])
        same(absmax, torch.ones(1))
        same(codes, lower.to(torch.uint8))


@every_isa
@pytest.mark.parametrize("blocksize", [1, 7, 64, 100, 255, 256, 4096, sys.maxsize])
def test_blocksizes(blocksize):
    for dtype in DTYPES:
        check(values(701, dtype), DYNAMIC, blocksize)


@every_isa
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    for dtype in DTYPES:
        A = values(size, dtype)
        same(quantize_blockwise(A, DYNAMIC, 64), reference.quantize_blockwise(A, DYNAMIC, 64))


@every_isa
@pytest.mark.parametrize("name", CODEBOOKS)
def test_many_elements(name):
    code = CODEBOOKS[name]
    bounds = ((code[:-1] + code[1:]) / 2).clamp(-1.0, 1.0)
    near = [bounds.nextafter(torch.tensor(side)) for side in (-2.0, 2.0)]
    edges = torch.cat([torch.ones(1), bounds, *near, torch.tensor([0.0, -0.0, 1e-9, -1e-9, 1e-42])])
    A = torch.cat([values(70_000, torch.float32), edges]).flip(0)
    for dtype in DTYPES:
        given = (A.to(dtype), code, 1024)
        same(quantize_blockwise(*given), reference.quantize_blockwise(*given))


@every_isa
def test_shapes():
    for shape in ((), (3, 5), (7, 1, 33), (4, 0), (0, 4)):
        check(torch.randn(shape), DYNAMIC, 64)


@every_isa
def test_strides_do_not_matter():
    for dtype in DTYPES:
        A = values((33, 47), dtype)
        expected = quantize_blockwise(A.t().contiguous(), DYNAMIC, 64)
        same(quantize_blockwise(A.t(), DYNAMIC, 64), expected)
        same(quantize_blockwise(strided(A.t()), strided(DYNAMIC), 64), expected)


@every_isa
@pytest.mark.parametrize("blocksize", [64, 4096, 5000])
def test_slices_that_start_anywhere(blocksize):
    for dtype in DTYPES:
        for start in (1, 4):
            A = values(20_000, dtype)[start:]
            expected = reference.quantize_blockwise(A, DYNAMIC, blocksize)
            same(quantize_blockwise(A, DYNAMIC, blocksize), expected)


@every_isa
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_block(zero):
    A = torch.cat([torch.full((64,), zero), values(64, torch.float32)])
    codes, absmax = quantize_blockwise(A, DYNAMIC, 64)
    assert absmax[0] == 0.0
    same(DYNAMIC[codes[:64].int()], torch.zeros(64))
    check(A, DYNAMIC, 64)


@every_isa
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_block_that_is_not_finite_gets_absmax_nan_and_harms_no_other(bad):
    for dtype in DTYPES:
        A = values(64 * 3 + 7, dtype)
        expected_codes, expected_absmax = quantize_blockwise(A, DYNAMIC, 64)
        A[101] = bad
        codes, absmax = quantize_blockwise(A, DYNAMIC, 64)
        assert absmax[1].isnan()
        other = torch.tensor([0, 2, 3])
        same(absmax[other], expected_absmax[other])
        same(codes[:64], expected_codes[:64])
        same(codes[128:], expected_codes[128:])
        same((codes, absmax), reference.quantize_blockwise(A, DYNAMIC, 64))


@every_isa
@pytest.mark.parametrize("scale", [1e-37, 3e-39, 1e-42, 1e30, 3.4e38])
def test_smallest_and_largest_magnitudes(scale):
    check(torch.rand(300).mul(2).sub(1) * scale, DYNAMIC, 64)


@pytest.mark.parametrize("place", [0, 100, 254])
def test_a_codebook_out_of_order_is_refused(isa, place):
    swapped, invalid = DYNAMIC.clone(), DYNAMIC.clone()
    swapped[[place, place + 1]] = swapped[[place + 1, place]]
    invalid[place] = float("nan")
    for code in (swapped, invalid):
        if is_for_gpus(isa):  # what only the device can read is not refused, and does no harm
            codes, _ = quantize_blockwise(torch.randn(300), code, 64)
            assert codes.shape == (300,)
        else:
            refuses("quantize_blockwise", "code", code=code)


WRONG = [
    ("A", {"A": torch.ones(8, dtype=torch.int8)}),
    ("A", {"A": torch.ones(8, dtype=torch.float64)}),
    ("code", {"code": DYNAMIC[:255]}),
    ("code", {"code": DYNAMIC.view(16, 16)}),
    ("code", {"code": DYNAMIC.to(torch.float16)}),
    ("code", {"code": DYNAMIC.to("meta")}),
    ("blocksize", {"blocksize": 0}),
    ("blocksize", {"blocksize": -256}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("quantize_blockwise", argument, **changed)
