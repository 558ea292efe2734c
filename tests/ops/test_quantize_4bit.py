"""quantize_4bit: the nearest of the 16 entries in units of the block's absmax."""

from __future__ import annotations

import itertools

import pytest
import torch

from bnbx.backends import reference
from bnbx.codebooks import get_4bit_type

from .checks import (
    BLOCKSIZES,
    DTYPES,
    NOT_FINITE,
    QUANT_TYPES,
    SIZES,
    absmax_of,
    assert_nearest,
    every_isa,
    refuses,
    same,
    strided,
    values,
)

quantize_4bit = torch.ops.bnbx.quantize_4bit


def unpacked(packed, count, quant_type):
    """Return the entries that the codes stand for: two a byte, the first in the high nibble."""
    stored = packed.view(torch.uint8).flatten()
    codes = torch.stack([stored >> 4, stored & 15], dim=1).flatten()[:count]
    return get_4bit_type(quant_type)[codes.int()]


def check(A, blocksize, quant_type):
    packed, absmax = quantize_4bit(A, blocksize, quant_type, torch.uint8)
    same(absmax, absmax_of(A, blocksize))
    entries = unpacked(packed, A.numel(), quant_type)
    assert_nearest(entries, A, absmax, get_4bit_type(quant_type), blocksize)
    same((packed, absmax), reference.quantize_4bit(A, blocksize, quant_type, torch.uint8))


@every_isa
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_nearest_entry_wins(blocksize):
    for dtype, quant_type in itertools.product(DTYPES, QUANT_TYPES):
        check(values(blocksize + 21, dtype), blocksize, quant_type)


@every_isa
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    for dtype in DTYPES:
        given = (values(size, dtype), 64, "nf4", torch.uint8)
        same(quantize_4bit(*given), reference.quantize_4bit(*given))


@every_isa
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_half_way_takes_the_lower_entry(quant_type):
    table = get_4bit_type(quant_type).sort().values
    middle = (table[:-1] + table[1:]) / 2
    A = torch.cat([middle, torch.ones(17)])
    packed, _ = quantize_4bit(A, 32, quant_type, torch.uint8)
    same(unpacked(packed, 15, quant_type), table[:-1])
    above = torch.cat([middle.nextafter(torch.tensor(2.0)), torch.ones(17)])
    packed, _ = quantize_4bit(above, 32, quant_type, torch.uint8)
    same(unpacked(packed, 15, quant_type), table[1:])


@every_isa
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_value_of_16_bits(dtype, quant_type):
    patterns = torch.arange(2**16).to(torch.int16).view(dtype)
    finite = patterns[patterns.isfinite()]
    scales = torch.cat([torch.tensor([6e-5, 0.013, 1.0, 3.3, 1e4, 6e4]).to(dtype), finite[::5001]])
    for absmax in scales.abs()[scales != 0]:
        rest = finite[finite.abs() <= absmax]
        blocks = rest[: rest.numel() // 63 * 63].view(-1, 63)
        A = torch.cat([absmax.expand(blocks.shape[0], 1), blocks], dim=1)
        given = (A, 64, quant_type, torch.uint8)
        same(quantize_4bit(*given), reference.quantize_4bit(*given))


@every_isa
@pytest.mark.parametrize("quant_storage", [torch.uint8, *DTYPES])
def test_storage_is_the_bytes_filled_up_with_zeros(quant_storage):
    for size in SIZES:
        A = values(size, torch.float32)
        packed, absmax = quantize_4bit(A, 64, "nf4", quant_storage)
        bytes_, expected_absmax = quantize_4bit(A, 64, "nf4", torch.uint8)
        assert packed.dtype is quant_storage
        assert packed.shape == (-(-bytes_.numel() // quant_storage.itemsize), 1)
        stored = packed.view(torch.uint8).flatten()
        same(stored[: bytes_.numel()], bytes_.flatten())
        assert not stored[bytes_.numel() :].any()
        same(absmax, expected_absmax)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    A = values((33, 47), dtype)
    expected = quantize_4bit(A.t().contiguous(), 64, "nf4", torch.uint8)
    same(quantize_4bit(A.t(), 64, "nf4", torch.uint8), expected)
    same(quantize_4bit(strided(A.t().contiguous()), 64, "nf4", torch.uint8), expected)
    same(quantize_4bit(A.t().flatten(), 64, "nf4", torch.uint8), expected)


@every_isa
@pytest.mark.parametrize("blocksize", [32, 4096])
def test_slices_that_start_anywhere(blocksize):
    for dtype, start in itertools.product(DTYPES, (1, 4)):
        A = values(20_000, dtype)[start:]
        expected = quantize_4bit(A.clone(), blocksize, "fp4", torch.uint8)
        same(quantize_4bit(A, blocksize, "fp4", torch.uint8), expected)
        same(expected, reference.quantize_4bit(A, blocksize, "fp4", torch.uint8))


@every_isa
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_block(zero):
    A = torch.cat([torch.full((64,), zero), values(64, torch.float32)])
    for quant_type in QUANT_TYPES:
        packed, absmax = quantize_4bit(A, 64, quant_type, torch.uint8)
        assert absmax[0] == 0.0
        same(unpacked(packed, 64, quant_type), torch.zeros(64))
        check(A, 64, quant_type)


@every_isa
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_block_that_is_not_finite_gets_absmax_nan_and_harms_no_other(bad):
    for dtype, place in itertools.product(DTYPES, (64, 100, 127)):
        A = values(64 * 3 + 7, dtype)
        expected_packed, expected_absmax = quantize_4bit(A, 64, "nf4", torch.uint8)
        A[place] = bad
        packed, absmax = quantize_4bit(A, 64, "nf4", torch.uint8)
        assert absmax[1].isnan()
        other = torch.tensor([0, 2, 3])
        same(absmax[other], expected_absmax[other])
        same(packed[:32], expected_packed[:32])
        same(packed[64:], expected_packed[64:])
        same((packed, absmax), reference.quantize_4bit(A, 64, "nf4", torch.uint8))


@every_isa
@pytest.mark.parametrize("scale", [1e-37, 3e-39, 1e-42, 1e30, 3.4e38])
def test_smallest_and_largest_magnitudes(scale):
    A = torch.rand(200).mul(2).sub(1) * scale
    for quant_type in QUANT_TYPES:
        check(A, 64, quant_type)


@every_isa
def test_largest_number_of_a_dtype():
    for dtype in DTYPES:
        A = torch.full((70,), torch.finfo(dtype).max, dtype=dtype)
        A[::2] *= -0.5
        check(A, 32, "nf4")


WRONG = [
    ("A", {"A": torch.ones(8, dtype=torch.float64)}),
    ("A", {"A": torch.ones(8, dtype=torch.int32)}),
    ("blocksize", {"blocksize": 0}),
    ("blocksize", {"blocksize": 48}),
    ("blocksize", {"blocksize": 8192}),
    ("quant_type", {"quant_type": "int4"}),
    ("quant_storage", {"quant_storage": torch.int8}),
    ("quant_storage", {"quant_storage": torch.float64}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("quantize_4bit", argument, **changed)
