"""The code tables of bitsandbytes, entry by entry."""

from __future__ import annotations

import itertools

import pytest
import torch

from bnbx import codebooks

pytest.importorskip("bitsandbytes")
from bitsandbytes import functional as bnb


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# bitsandbytes' "int4" has 17 entries.
@pytest.mark.parametrize("typename", ["nf4", "fp4", "af4"])
def test_4bit_types(typename):
    same(codebooks.get_4bit_type(typename), bnb.get_4bit_type(typename, device="cpu"))


# bitsandbytes fails without exponent bits, and with fewer than 7 of them for an unsigned map.
@pytest.mark.parametrize(
    ("signed", "exponents", "bits"),
    [(False, 7, 8), *((True, e, b) for b in (4, 6, 8) for e in range(1, b))],
)
def test_dynamic_maps(signed, exponents, bits):
    given = (signed, exponents, bits)
    same(codebooks.create_dynamic_map(*given), bnb.create_dynamic_map(*given))


@pytest.mark.parametrize(
    ("signed", "bits", "add_zero"),
    list(itertools.product((True, False), range(2, 9), (True, False))),
)
def test_linear_maps(signed, bits, add_zero):
    given = (signed, bits, add_zero)
    theirs = bnb.create_linear_map(*given).sort().values  # zeros stand in the middle of theirs
    torch.testing.assert_close(codebooks.create_linear_map(*given), theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("signed", "exponents", "precision"),
    [(True, 5, 2), (True, 4, 3), (True, 3, 4), (True, 2, 5), (False, 5, 3), (False, 4, 4)],
)
def test_fp8_maps(signed, exponents, precision):
    given = (signed, exponents, precision)
    same(codebooks.create_fp8_map(*given), bnb.create_fp8_map(*given))


@pytest.mark.parametrize(
    ("offset", "extra"), list(itertools.product((0.9677083, 0.98), (True, False)))
)
def test_normal_maps(offset, extra):
    pytest.importorskip("scipy")
    ours, theirs = codebooks.create_normal_map(offset, extra), bnb.create_normal_map(offset, extra)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
