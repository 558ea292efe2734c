"""encode_4bit: the nearest entries at given scales, and that everything decodes negative ones."""

from __future__ import annotations

import itertools

import pytest
import torch

from bnbx.backends import reference
from bnbx.codebooks import create_dynamic_map, get_4bit_type

from .checks import DTYPES, QUANT_TYPES, SIZES, assert_nearest, every_isa, refuses, same, values
from .test_quantize_4bit import unpacked

encode = torch.ops.bnbx.encode_4bit


def signed_scales(blocks):
    return (
        values(blocks, torch.float32).abs().add(0.1)
        * torch.tensor([1.0, -1.0])[torch.arange(blocks) % 2]
    )


@every_isa
@pytest.mark.parametrize("size", SIZES)
def test_nearest_entry_wins(size):
    for dtype, quant_type in itertools.product(DTYPES, QUANT_TYPES):
        A, scales = values(size, dtype), signed_scales(-(-size // 64))
        packed = encode(A, scales, 64, quant_type, torch.uint8)
        entries = unpacked(packed, size, quant_type)
        # In units of the scale's magnitude: the entries of a negative one change their signs.
        signs = scales.sign()[torch.arange(size) // 64]
        assert_nearest(entries, A * signs, scales.abs(), get_4bit_type(quant_type), 64)
        same(packed, reference.encode_4bit(A, scales, 64, quant_type, torch.uint8))


@every_isa
def test_with_the_absmax_it_is_quantize_4bit():
    for dtype, storage in itertools.product(DTYPES, (torch.uint8, torch.float32)):
        A = values(1001, dtype)
        A[70] = float("nan")
        A[128:192] = 0.0
        packed, absmax = torch.ops.bnbx.quantize_4bit(A, 64, "nf4", storage)
        same(encode(A, absmax, 64, "nf4", storage), packed)


@every_isa
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("M", [1, 3, 20, 70, 200])
def test_products_with_negative_scales(M, nested):
    N, K = 48, 192
    for dtype, quant_type in itertools.product(DTYPES, QUANT_TYPES):
        packed = torch.randint(0, 256, (N * K // 2, 1), dtype=torch.uint8)
        scales = signed_scales(N * K // 64)
        how = (64, quant_type)
        absmax, others = scales, ()
        if nested:
            code, offset = create_dynamic_map(), torch.tensor(0.25)
            codes, absmax = torch.ops.bnbx.quantize_blockwise(scales - offset, code, 256)
            others = (codes, code, offset, 256)
            decoded = torch.ops.bnbx.dequantize_blockwise(codes, absmax, code, 256, torch.float32)
            scales = decoded + offset
            assert (scales < 0).any()
        weight = get_4bit_type(quant_type)[
            torch.stack([packed >> 4, packed & 15], dim=1).flatten().int()
        ].double() * scales.double().repeat_interleave(64)
        same(
            torch.ops.bnbx.dequantize_4bit(packed, scales, *how, [N, K], torch.float32),
            weight.float().view(N, K),
        )
        A, B = values((M, K), dtype), values((M, N), dtype)
        forward = torch.ops.bnbx.gemm_4bit(A, packed, [N, K], absmax, *how, None, *others)
        back = torch.ops.bnbx.gemm_4bit_transposed(B, packed, [N, K], absmax, *how, *others)
        weight = weight.view(N, K)
        for out, left, right in ((forward, A, weight.t()), (back, B, weight)):
            exact = left.double() @ right
            bound = (left.double().square() @ right.square()).sqrt()
            eps = torch.finfo(dtype).eps
            assert ((out.double() - exact).abs() <= 4 * eps * (bound + exact.abs()) + 1e-4).all()


WRONG = [
    ("A", {"A": torch.ones(8, dtype=torch.float64)}),
    ("absmax", {"absmax": torch.ones(3)}),
    ("absmax", {"absmax": torch.ones(6, dtype=torch.float64)}),
    ("blocksize", {"blocksize": 48}),
    ("quant_storage", {"quant_storage": torch.int8}),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("encode_4bit", argument, **changed)
