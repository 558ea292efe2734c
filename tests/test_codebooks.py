"""The code tables against the definitions of their data types."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from bnbx import codebooks
from bnbx.codebooks import (
    create_dynamic_map,
    create_fp8_map,
    create_linear_map,
    create_normal_map,
    get_4bit_type,
)

MAPS = {
    "dynamic": create_dynamic_map(),
    "dynamic_unsigned": create_dynamic_map(signed=False),
    "dynamic_4bit": create_dynamic_map(max_exponent_bits=3, total_bits=4),
    "linear": create_linear_map(),
    "linear_unsigned": create_linear_map(signed=False),
    "linear_4bit": create_linear_map(total_bits=4),
    "fp8": create_fp8_map(),
    "fp8_e4m3": create_fp8_map(exponent_bits=4, precision_bits=3),
    "fp8_unsigned": create_fp8_map(signed=False, exponent_bits=5, precision_bits=3),
    "normal": create_normal_map(),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_256_ascending_floats_up_to_1(name):
    code = MAPS[name]
    assert (code.dtype, code.shape) == (torch.float32, (256,))
    assert (code.diff() >= 0).all()
    assert code[-1] == 1.0
    assert code[0] >= -1.0
    assert (code == 0.0).any()


@pytest.mark.parametrize("name", [name for name in MAPS if "unsigned" in name])
def test_unsigned_maps_have_no_negative_entry(name):
    assert MAPS[name][0] == 0.0


def test_nf4_is_the_normal_map():
    nf4 = get_4bit_type("nf4")
    torch.testing.assert_close(create_normal_map().unique(), nf4, rtol=0, atol=1e-7)


def test_normal_map_holds_quantiles_of_the_normal_distribution():
    """QLoRA, section 3: equal steps of probability on either side of zero, largest value 1."""
    quantile = statistics.NormalDist().inv_cdf
    offset = 0.9677083
    positive = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    negative = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    expected = torch.tensor(sorted([*positive, 0.0, *negative])) / quantile(offset)
    torch.testing.assert_close(create_normal_map().unique(), expected, rtol=0, atol=1e-6)
    assert create_normal_map(use_extra_value=False).unique().numel() == 15


def test_fp4_is_a_float_with_two_exponent_bits_and_one_of_fraction():
    fp4 = get_4bit_type("fp4")
    assert (fp4[8:] == -fp4[:8]).all()  # the first bit is the sign
    normal = sorted(
        (1.0 + fraction / 2) * 2.0**exponent for exponent in range(3) for fraction in range(2)
    )
    assert (fp4[:8].sort().values[2:] * 6.0).tolist() == pytest.approx(normal)
    assert fp4[0] == 0.0
    assert fp4[1].item() == pytest.approx(0.0625 / 12)  # the subnormal, by convention this small


def test_fp4_is_the_fp8_map_of_four_bits_but_for_the_subnormal():
    code = create_fp8_map(signed=True, exponent_bits=2, precision_bits=1, total_bits=4).unique()
    fp4 = get_4bit_type("fp4").unique()
    normal = torch.arange(15)[fp4.abs() > 0.01]
    torch.testing.assert_close(code[normal], fp4[normal], rtol=0, atol=1e-7)


def test_int4_is_linear():
    assert (get_4bit_type("int4") * 7).round().tolist() == [*range(7, -1, -1), *range(0, -8, -1)]


def test_af4_is_ordered_and_holds_both_ends():
    af4 = get_4bit_type("af4")
    assert (af4.diff() < 0).all()
    assert (af4[0], af4[8], af4[-1]) == (1.0, 0.0, -1.0)


@pytest.mark.parametrize("name", ["nf4", "fp4", "int4", "af4"])
def test_a_4bit_table_can_be_changed_without_harm(name):
    expected = get_4bit_type(name).clone()
    get_4bit_type(name).zero_()
    assert (get_4bit_type(name) == expected).all()
    assert (expected.dtype, expected.shape, expected.abs().max()) == (torch.float32, (16,), 1.0)


@pytest.mark.parametrize(("typename", "blocksize"), [("nf5", 64), ("NF4", 64), ("af4", 128)])
def test_4bit_types_that_are_not_defined(typename, blocksize):
    expected = "blocksize" if typename == "af4" else "typename"
    with pytest.raises(NotImplementedError, match=f"^{expected}: "):
        get_4bit_type(typename, blocksize=blocksize)


@pytest.mark.parametrize(
    ("signed", "total_bits"), list(itertools.product((True, False), range(2, 9)))
)
def test_linear_map_is_evenly_spaced(signed, total_bits):
    code = create_linear_map(signed, total_bits).round(decimals=6).unique()  # -3e-8 is zero
    assert code.numel() == 2**total_bits - int(signed)
    steps = code.diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0, atol=2e-6)
    assert code[0] == (-1.0 if signed else 0.0)


def test_linear_map_without_zero():
    code = create_linear_map(add_zero=False)
    assert code.unique().numel() == 256
    assert not (code == 0.0).any()


@pytest.mark.parametrize(("exponent_bits", "precision_bits"), [(5, 2), (4, 3), (3, 4), (2, 5)])
def test_fp8_map_holds_every_float_of_its_format(exponent_bits, precision_bits):
    fractions = [i / 2**precision_bits for i in range(2**precision_bits)]
    normal = [(1 + f) * 2.0**-e for e in range(2**exponent_bits - 1) for f in fractions]
    largest = max(normal)
    code = create_fp8_map(True, exponent_bits, precision_bits)
    found = set((code * largest).tolist())
    assert {torch.tensor(s * v).item() for v in normal for s in (1, -1)} <= found
    assert code.unique().numel() == 255  # zero stands twice


def test_fp8_map_refuses_bits_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"^total_bits: expected .* = 9, got 8$"):
        create_fp8_map(True, 5, 3, 8)


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_map_doubles_its_entries_from_decade_to_decade(signed):
    """Dettmers et al. 2022, 8-bit optimizers, section 2: a bit of exponent for one of fraction."""
    code = create_dynamic_map(signed)
    assert code.unique().numel() == 256
    first = 1 if signed else 2
    for i in range(7):
        low, high = 10.0 ** (i - 7), 10.0 ** (i - 6)
        inside = code[(code > low) & (code <= high * 0.999)]
        assert inside.numel() == first * 2**i
        # The middles of equal parts of the decade.
        middles = torch.linspace(low, high, inside.numel() + 1)
        torch.testing.assert_close(inside, (middles[1:] + middles[:-1]) / 2, rtol=1e-5, atol=0)
    if signed:
        assert (code[:127] == -code[128:255].flip(0)).all()  # 1 has no negative


@pytest.mark.parametrize(("bits", "exponents"), [(4, 3), (5, 2), (6, 5), (8, 1), (8, 7), (8, 0)])
def test_dynamic_map_of_fewer_bits(bits, exponents):
    code = create_dynamic_map(True, exponents, bits)
    assert code.unique().numel() == 2**bits
    smallest = code[code > 0].min().item()
    assert math.floor(math.log10(smallest)) == -max(exponents, 1)


def test_tables_have_one_source():
    assert codebooks.QUANT_TYPES_4BIT == ("nf4", "fp4")
    assert get_4bit_type("nf4").tolist() == list(codebooks.NF4)


def test_the_4bit_maps_of_optimizers():
    """Li, Chen & Zhu 2023: three decades and zero, signed; sixteenths without zero, unsigned."""
    signed = codebooks.create_optimizer_map_4bit().tolist()
    decades = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    expected = [*(-x for x in reversed(decades)), 0.0, *decades, 1.0]
    assert signed == pytest.approx(expected, rel=1e-6)
    unsigned = codebooks.create_optimizer_map_4bit(signed=False).tolist()
    assert unsigned == [i / 16 for i in range(1, 17)]
