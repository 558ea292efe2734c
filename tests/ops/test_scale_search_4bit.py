"""scale_search_4bit: a scale for each block that is at least as good as its absmax."""

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
    every_isa,
    per_element,
    refuses,
    same,
    values,
)

search = torch.ops.bnbx.scale_search_4bit
FACTORS = [0.85, -0.9, 0.95, -1.0, 1.05, -1.35]


def errors(A, scales, quant_type, blocksize, importance=None):
    """Return the squared error of each block with the nearest entries, in float64."""
    table = get_4bit_type(quant_type).double()
    flat = A.double().flatten()
    scale = per_element(scales.double(), blocksize, flat.numel()).unsqueeze(1)
    squares = (flat.unsqueeze(1) - scale * table).square().amin(dim=1)
    if importance is not None:
        squares = squares * importance.double().expand(A.shape).flatten()
    return torch.stack([block.sum() for block in squares.split(blocksize)])


@every_isa
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_same_bits_as_the_reference_and_no_larger_errors(blocksize, weighted):
    columns = 2 * blocksize + 7
    for dtype, quant_type in itertools.product(DTYPES, QUANT_TYPES):
        A = values((9, columns) if blocksize <= 128 else columns, dtype)
        importance = torch.rand(columns).pow(4) if weighted else None
        given = (A, importance, FACTORS, 2, blocksize, quant_type)
        scales = search(*given)
        if blocksize <= 128 or dtype is torch.float32:
            same(scales, reference.scale_search_4bit(*given))
        found = errors(A, scales, quant_type, blocksize, importance)
        plain = errors(A, absmax_of(A, blocksize), quant_type, blocksize, importance)
        assert (found <= plain * (1 + 1e-5)).all()
        assert found.sum() < plain.sum()


@every_isa
@pytest.mark.parametrize("size", [size for size in SIZES if size < 2000])
def test_sizes(size):
    for dtype in DTYPES:
        given = (values(size, dtype), None, FACTORS, 1, 64, "nf4")
        same(search(*given), reference.scale_search_4bit(*given))


def test_finds_the_scale_of_values_that_lie_on_the_grid():
    table = get_4bit_type("nf4")
    scales = torch.tensor([1.5, -0.3, 2e-5, -7e8])
    codes = torch.randint(0, 16, (4, 64))
    codes[:, 0] = 0  # the entry -1, so that the absmax has the other sign
    A = table[codes] * scales.unsqueeze(1)
    found = search(A, None, [1.0, -1.0], 1, 64, "nf4")
    assert torch.allclose(found, scales, rtol=1e-6, atol=0)


def test_more_trials_and_refinements_do_no_harm():
    A = values((64, 64), torch.float32)
    calls = [(FACTORS[:2], 0), (FACTORS, 0), (FACTORS, 1), (FACTORS, 4)]
    sums = [
        errors(A, search(A, None, factors, refinements, 64, "nf4"), "nf4", 64).sum()
        for factors, refinements in calls
    ]
    assert sums == sorted(sums, reverse=True)
    assert sums[3] < sums[0]


def test_importance_lowers_the_weighted_error():
    A, importance = values((50, 192), torch.float32), torch.rand(192).pow(6)
    weighted = search(A, importance, FACTORS, 2, 64, "nf4")
    without = search(A, None, FACTORS, 2, 64, "nf4")
    both = [errors(A, scales, "nf4", 64, importance).sum() for scales in (weighted, without)]
    assert both[0] < 0.95 * both[1]
    same(search(A, torch.full((192,), 0.25), FACTORS, 2, 64, "nf4"), without)


@every_isa
def test_unimportant_blocks_zeros_and_tiny_values_keep_their_absmax():
    A = values((4, 64), torch.float32)
    importance = torch.zeros(64)
    same(search(A, importance, FACTORS, 1, 64, "nf4"), A.abs().amax(dim=1))
    for scale in (0.0, -0.0, 1e-31, 1e-42):
        tiny = A * scale
        same(search(tiny, None, FACTORS, 1, 64, "fp4"), tiny.abs().amax(dim=1))


@every_isa
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_block_that_is_not_finite_gets_nan_and_harms_no_other(bad):
    A = values((5, 64), torch.float32)
    expected = search(A, None, FACTORS, 1, 64, "nf4")
    A[2, 33] = bad
    expected[2] = float("nan")
    same(search(A, None, FACTORS, 1, 64, "nf4"), expected)


@every_isa
def test_largest_magnitudes_stay_finite():
    A = values((20, 64), torch.float32).clamp(-1, 1) * 3.4e38
    assert search(A, None, FACTORS, 1, 64, "nf4").isfinite().all()


WRONG = [
    ("A", {"A": torch.ones(8, dtype=torch.float64)}),
    ("blocksize", {"blocksize": 48}),
    ("quant_type", {"quant_type": "int4"}),
    ("factors", {"factors": []}),
    ("factors", {"factors": [1.0, 0.0]}),
    ("factors", {"factors": [float("nan")]}),
    ("refinements", {"refinements": -1}),
    ("importance", {"importance": torch.ones(69)}),
    ("importance", {"importance": torch.ones(70, dtype=torch.float64)}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("scale_search_4bit", argument, **changed)
