"""dequantize_4bit: the table entry of each code times the absmax of its block."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.codebooks import get_4bit_type
from bnbx.conformance.samples import arguments

from .checks import (
    BLOCKSIZES,
    DTYPES,
    QUANT_TYPES,
    SIZES,
    every_isa,
    per_element,
    refuses,
    run,
    same,
    strided,
    values,
)

dequantize_4bit = torch.ops.bnbx.dequantize_4bit


def random_state(count, blocksize):
    packed = torch.randint(256, (-(-count // 2), 1), dtype=torch.uint8)
    return packed, torch.rand(-(-count // blocksize)) * 3


def oracle(packed, absmax, blocksize, quant_type, count):
    stored = packed.flatten()
    codes = torch.stack([stored >> 4, stored & 15], dim=1).flatten()[:count]
    entries = get_4bit_type(quant_type)[codes.int()]
    return entries * per_element(absmax, blocksize, count)


@every_isa
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_entry_times_absmax(blocksize):
    count = 2 * blocksize + 37
    packed, absmax = random_state(count, blocksize)
    for dtype, quant_type in itertools.product(DTYPES, QUANT_TYPES):
        expected = oracle(packed, absmax, blocksize, quant_type, count)
        given = (packed, absmax, blocksize, quant_type, [count], dtype)
        same(dequantize_4bit(*given), expected.to(dtype))
        same(dequantize_4bit(*given), reference.dequantize_4bit(*given))


@every_isa
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    packed, absmax = random_state(size, 32)
    expected = oracle(packed, absmax, 32, "nf4", size)
    for dtype in DTYPES:
        same(dequantize_4bit(packed, absmax, 32, "nf4", [size], dtype), expected.to(dtype))


@every_isa
def test_shapes():
    for shape in ((), (3, 5), (7, 1, 33), (0,), (4, 0), (0, 4)):
        count = math.prod(shape)
        packed, absmax = random_state(count, 64)
        expected = oracle(packed, absmax, 64, "fp4", count).view(shape)
        same(dequantize_4bit(packed, absmax, 64, "fp4", shape, torch.float32), expected)


@every_isa
@pytest.mark.parametrize("quant_storage", [torch.uint8, *DTYPES])
def test_every_storage_holds_the_same_bytes(quant_storage):
    for size in SIZES:
        A = values(size, torch.float32)
        packed, absmax = reference.quantize_4bit(A, 64, "nf4", quant_storage)
        expected = oracle(packed.view(torch.uint8), absmax, 64, "nf4", size)
        same(dequantize_4bit(packed, absmax, 64, "nf4", [size], torch.float32), expected)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_out(dtype):
    given = {**arguments("dequantize_4bit", dtype=dtype), "shape": [5, 70]}
    out = torch.full((5, 70), 9.0, dtype=dtype)
    assert run("dequantize_4bit.out", **given, out=out) is None
    same(out, dequantize_4bit(**given))


@every_isa
def test_slices_that_start_anywhere():
    packed, absmax = random_state(20_000, 64)
    for dtype, start in itertools.product(DTYPES, (1, 2)):
        count = 20_000 - 2 * start
        given = {"A": packed[start:], "absmax": absmax, "blocksize": 64, "quant_type": "nf4"}
        given |= {"shape": [count], "dtype": dtype}
        out = torch.full((20_000,), 9.0, dtype=dtype)
        run("dequantize_4bit.out", **given, out=out[start : start + count])
        same(out[start : start + count], reference.dequantize_4bit(**given))
        assert (out[:start] == 9.0).all()
        assert (out[start + count :] == 9.0).all()


@every_isa
def test_strides_do_not_matter():
    packed, absmax = random_state(700, 64)
    expected = dequantize_4bit(packed, absmax, 64, "nf4", [700], torch.float32)
    other = (strided(packed), strided(absmax))
    same(dequantize_4bit(*other, 64, "nf4", [700], torch.float32), expected)


@every_isa
@pytest.mark.parametrize("scale", [math.nan, 0.0, 1e-42, 1e-38, 3e38])
def test_extreme_absmax(scale):
    packed, absmax = random_state(3 * 64 + 9, 64)
    absmax[1] = scale
    for dtype in DTYPES:
        out = dequantize_4bit(packed, absmax, 64, "nf4", [201], dtype)
        same(out, oracle(packed, absmax, 64, "nf4", 201).to(dtype))
        assert out[64:128].isnan().all() == math.isnan(scale)
        assert not out[:64].isnan().any()
        assert not out[128:].isnan().any()


@every_isa
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_round_trip_is_within_half_a_gap(quant_type):
    half_gap = get_4bit_type(quant_type).sort().values.diff().max() / 2
    for dtype in DTYPES:
        A = values(1001, dtype)
        packed, absmax = torch.ops.bnbx.quantize_4bit(A, 64, quant_type, torch.uint8)
        decoded = dequantize_4bit(packed, absmax, 64, quant_type, [1001], torch.float32)
        error = (decoded - A.float()).abs() / per_element(absmax, 64, 1001)
        assert error.max() <= half_gap * 1.000001
        assert error.max() > half_gap / 2  # of a thousand values, one lies in the widest gap


WRONG = [
    ("A", {"A": torch.zeros(175, 1, dtype=torch.int32)}),
    ("A", {"A": torch.zeros(174, 1, dtype=torch.uint8)}),
    ("A", {"A": torch.zeros(176, 1, dtype=torch.uint8)}),
    ("A", {"A": torch.zeros(44, 1, dtype=torch.float64)}),
    ("A", {"shape": [5, 71]}),
    ("absmax", {"absmax": torch.ones(5)}),
    ("absmax", {"absmax": torch.ones(7)}),
    ("absmax", {"absmax": torch.ones(6, dtype=torch.float16)}),
    ("absmax", {"absmax": torch.ones(6, device="meta")}),
    ("absmax", {"blocksize": 128}),
    ("blocksize", {"blocksize": 0}),
    ("blocksize", {"blocksize": 65}),
    ("quant_type", {"quant_type": "NF4"}),
    ("dtype", {"dtype": torch.float64}),
    ("dtype", {"dtype": torch.int8}),
]
WRONG_OUT = [
    *WRONG,
    ("out", {"out": torch.empty(5, 70, dtype=torch.float16)}),
    ("out", {"out": torch.empty(70, 5)}),
    ("out", {"out": torch.empty(70, 5).t()}),
    ("out", {"out": torch.empty(350)}),
    ("out", {"out": torch.empty(5, 70, device="meta")}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("dequantize_4bit", argument, **changed)


@pytest.mark.parametrize(("argument", "changed"), WRONG_OUT)
def test_out_refuses(argument, changed):
    refuses("dequantize_4bit.out", argument, **changed)
