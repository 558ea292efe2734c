"""4-bit quantization against a table look-up in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bnbx import functional as F

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
STORAGES = [torch.uint8, *DTYPES]
QUANT_TYPES = ["nf4", "fp4"]


def unpack(packed: Tensor, numel: int) -> Tensor:
    """Return one code per element; the first of a byte's two stands in its high bits."""
    data = packed.contiguous().view(-1).view(torch.uint8).tolist()
    codes = [code for byte in data for code in (byte >> 4, byte & 15)]
    return torch.tensor(codes[:numel], dtype=torch.int64)


def decode(codes: Tensor, absmax: Tensor, blocksize: int, quant_type: str) -> Tensor:
    table = F.get_4bit_type(quant_type)
    scale = absmax.cpu()[torch.arange(codes.numel()) // blocksize]
    return table[codes] * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 17), (64, 65), (5, 0)])
def test_every_value_takes_the_nearest_code(
    dtype: torch.dtype, quant_type: str, blocksize: int, shape: tuple[int, ...], device: str
) -> None:
    A = torch.randn(shape, device=device).to(dtype)
    packed, state = F.quantize_4bit(A, blocksize=blocksize, quant_type=quant_type)
    numel = A.numel()
    assert packed.dtype == torch.uint8
    assert packed.shape == ((numel + 1) // 2, 1)
    assert (state.shape, state.dtype, state.blocksize) == (A.shape, dtype, blocksize)
    assert state.quant_type == quant_type

    flat = A.float().cpu().view(-1)
    absmax = torch.tensor([block.abs().max() for block in flat.split(blocksize) if len(block)])
    assert torch.equal(state.absmax.cpu(), absmax)
    codes = unpack(packed, numel)
    scaled = flat / absmax[torch.arange(numel) // blocksize]
    distances = (scaled.unsqueeze(1) - F.get_4bit_type(quant_type)).abs()
    chosen = distances.gather(1, codes.unsqueeze(1)).view(-1)
    assert (chosen <= distances.amin(1) + 1e-6).all()

    expected = decode(codes, absmax, blocksize, quant_type).to(dtype).view(shape)
    values = F.dequantize_4bit(packed, state)
    assert values.dtype == dtype
    assert torch.equal(values.cpu(), expected)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("numel", [1, 2, 3, 8, 9, 129, 4096])
def test_storage_holds_the_same_bytes(storage: torch.dtype, numel: int, device: str) -> None:
    A = torch.randn(numel, device=device)
    expected, plain = F.quantize_nf4(A)
    packed, state = F.quantize_nf4(A, quant_storage=storage)
    assert packed.dtype == storage
    assert packed.shape == (-(-expected.numel() // storage.itemsize), 1)
    data = packed.view(torch.uint8).view(-1)
    assert torch.equal(data[: expected.numel()], expected.view(-1))
    assert not data[expected.numel() :].any()
    assert torch.equal(F.dequantize_nf4(packed, state), F.dequantize_nf4(expected, plain))


@pytest.mark.parametrize("shape", [(64, 48), (31, 33), (300, 1000)])
def test_nested_scales(shape: tuple[int, int], device: str) -> None:
    A = torch.randn(shape, device=device)
    packed, plain = F.quantize_4bit(A, quant_type="nf4")
    nested_packed, state = F.quantize_4bit(A, quant_type="nf4", compress_statistics=True)
    assert torch.equal(nested_packed, packed)
    assert state.nested
    assert state.state2.blocksize == 256
    assert state.absmax.dtype == torch.uint8
    assert torch.equal(state.offset, plain.absmax.mean())
    assert torch.equal(state.state2.code.cpu(), F.create_dynamic_map())

    index = torch.arange(plain.absmax.numel())
    scales = state.state2.absmax.cpu()[index // 256]
    absmax = F.create_dynamic_map()[state.absmax.cpu().int()] * scales + state.offset.cpu()
    assert torch.equal(state.float_absmax().cpu(), absmax)
    # Half of the widest step of the map, times the largest deviation.
    assert (absmax - plain.absmax.cpu()).abs().max() <= 0.0075 * scales.max()
    expected = decode(unpack(packed, A.numel()), absmax, 64, "nf4").view(shape)
    assert torch.equal(F.dequantize_4bit(packed, state).cpu(), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 256, 257, 5000])
def test_offset_is_the_mean_to_the_last_bit(count: int, device: str) -> None:
    A = torch.rand(count * 64, device=device)
    _, plain = F.quantize_4bit(A)
    _, state = F.quantize_4bit(A, compress_statistics=True)
    assert torch.equal(state.offset, plain.absmax.mean())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_stays_alone(bad: float, device: str) -> None:
    A = torch.randn(300 * 64, device=device)
    A[70] = bad
    _, without = F.quantize_4bit(A[128:], compress_statistics=True)
    for nested, poisoned in ((False, 64), (True, 256 * 64)):
        packed, state = F.quantize_4bit(A, quant_type="nf4", compress_statistics=nested)
        values = F.dequantize_4bit(packed, state)
        # Nested scales come in blocks too: the NaN takes the 256 blocks with it that share one.
        first = 0 if nested else 64
        assert values[first : first + poisoned].isnan().all()
        rest = torch.cat([values[:first], values[first + poisoned :]])
        assert rest.isfinite().all()
        if nested:
            assert state.offset.isfinite()
            assert torch.isclose(
                state.offset, without.absmax.new_zeros(()) + without.offset, rtol=0.1
            )


def test_offset_without_a_finite_scale(device: str) -> None:
    for A in (torch.full((128,), math.nan, device=device), torch.empty(0, device=device)):
        packed, state = F.quantize_4bit(A, compress_statistics=True)
        assert state.offset == 0.0
        assert F.dequantize_4bit(packed, state).isnan().all()
        assert F.QuantState.from_dict(state.as_dict(packed=True), device) == state


def test_offset_of_scales_whose_sum_overflows(device: str) -> None:
    A = torch.full((256,), 3e38, device=device)
    packed, state = F.quantize_4bit(A, compress_statistics=True)
    assert torch.isclose(state.offset, torch.tensor(3e38, device=device))
    assert torch.allclose(F.dequantize_4bit(packed, state), A)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_zeros_stay_zeros(nested: bool, quant_type: str, device: str) -> None:
    A = torch.zeros(10, 64, device=device)
    packed, state = F.quantize_4bit(A, quant_type=quant_type, compress_statistics=nested)
    assert not F.dequantize_4bit(packed, state).any()


def test_strides_do_not_matter(device: str) -> None:
    A = torch.randn(40, 60, device=device)
    for view in (A.t(), A[::2, ::3], A[:, :1].expand(40, 9)):
        packed, state = F.quantize_4bit(view)
        expected, expected_state = F.quantize_4bit(view.contiguous())
        assert torch.equal(packed, expected)
        assert state == expected_state
    packed, state = F.quantize_4bit(A)
    spread = torch.empty(packed.shape[0], 3, dtype=torch.uint8, device=device)[:, 1:2]
    spread.copy_(packed)
    assert torch.equal(F.dequantize_4bit(spread, state), F.dequantize_4bit(packed, state))
    rows, bias = torch.randn(60, 3, device=device).t(), torch.randn(80, device=device)[::2]
    expected = F.gemm_4bit(rows.contiguous(), packed, state, bias.contiguous())
    assert torch.equal(F.gemm_4bit(rows, spread, state, bias), expected)


def test_named_types_are_the_general_function(device: str) -> None:
    A = torch.randn(100, device=device)
    for name in QUANT_TYPES:
        quantize, dequantize = getattr(F, f"quantize_{name}"), getattr(F, f"dequantize_{name}")
        packed, state = quantize(A, blocksize=128, compress_statistics=True)
        expected, expected_state = F.quantize_4bit(A, None, None, 128, True, name)
        assert torch.equal(packed, expected)
        assert state == expected_state
        assert torch.equal(dequantize(packed, state), F.dequantize_4bit(packed, state))
        out = torch.empty_like(A)
        _, plain = quantize(A)
        assert dequantize(packed, absmax=plain.absmax, out=out, blocksize=64) is out


def test_outputs_given_by_the_caller(device: str) -> None:
    A = torch.randn(100, device=device)
    expected, expected_state = F.quantize_4bit(A)
    out, absmax = torch.empty_like(expected), torch.empty_like(expected_state.absmax)
    packed, state = F.quantize_4bit(A, absmax, out)
    assert packed is out
    assert state.absmax is absmax
    assert torch.equal(out, expected)
    assert torch.equal(absmax, expected_state.absmax)

    values = torch.empty_like(A)
    assert F.dequantize_4bit(out, state, out=values) is values
    assert torch.equal(values, F.dequantize_4bit(out, state))
    again = torch.empty_like(A)
    F.dequantize_4bit(out, absmax=absmax, out=again, quant_type="fp4")
    assert torch.equal(again, values)


@pytest.mark.parametrize(
    ("wrong", "blamed"),
    [
        ({"out": torch.empty(51, 1, dtype=torch.uint8)}, "out"),
        ({"out": torch.empty(50, 1, dtype=torch.int8)}, "out"),
        ({"out": torch.empty(50, dtype=torch.uint8)}, "out"),
        ({"absmax": torch.empty(1)}, "absmax"),
        ({"absmax": torch.empty(2, dtype=torch.float16)}, "absmax"),
        ({"absmax": torch.empty(2), "compress_statistics": True}, "absmax"),
        ({"blocksize": 100}, "blocksize"),
        ({"quant_type": "int4"}, "quant_type"),
        ({"quant_storage": torch.int32}, "quant_storage"),
    ],
)
def test_wrong_arguments_of_quantize(wrong: dict[str, Any], blamed: str) -> None:
    with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
        F.quantize_4bit(torch.randn(100), **wrong)
    with pytest.raises(ValueError, match=r"^A: expected dtype .*, got torch.float64"):
        F.quantize_4bit(torch.randn(100, dtype=torch.float64))


def test_wrong_arguments_of_dequantize() -> None:
    packed, state = F.quantize_4bit(torch.randn(100))
    for out in (torch.empty(99), torch.empty(100, dtype=torch.float16), torch.empty(200)[::2]):
        with pytest.raises(ValueError, match=r"^out: expected .*, got"):
            F.dequantize_4bit(packed, state, out=out)
    with pytest.raises(ValueError, match="^absmax: expected a tensor"):
        F.dequantize_4bit(packed, out=torch.empty(100))
    with pytest.raises(ValueError, match="^out: expected a tensor"):
        F.dequantize_4bit(packed, absmax=state.absmax)
    with pytest.raises(ValueError, match="^A: expected 50 bytes"):
        F.dequantize_4bit(packed[1:], state)
    state.absmax = state.absmax[:1]
    with pytest.raises(ValueError, match="^absmax: expected 2 elements"):
        F.dequantize_4bit(packed, state)


def test_transposed_weight_gives_the_transposed_result(device: str) -> None:
    A = torch.randn(6, 32, device=device)
    packed, state = F.quantize_4bit(A)
    expected = F.dequantize_4bit(packed, state)
    assert torch.equal(F.dequantize_4bit(packed.t(), state), expected.t())
    out = torch.empty_like(A)
    assert torch.equal(F.dequantize_4bit(packed.t(), state, out=out), expected.t())
    assert torch.equal(out, expected)
    single, single_state = F.quantize_4bit(torch.randn(1, 2, device=device))
    assert F.dequantize_4bit(single, single_state).shape == (1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("N", "K"), [(1, 64), (48, 64), (5, 33), (17, 130), (0, 4), (4, 0)])
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3), (), (0,)])
def test_gemm_and_gemv(
    dtype: torch.dtype, nested: bool, N: int, K: int, batch: tuple[int, ...], device: str
) -> None:
    weight = torch.randn(N, K, device=device)
    packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    A = torch.randn(*batch, K, device=device).to(dtype)
    bias = torch.randn(N, device=device).to(dtype)
    dense = F.dequantize_4bit(packed, state).double()
    expected = A.double() @ dense.t()
    # The weight, the products and their sum are rounded, each at most by its magnitude.
    bound = 2 * torch.finfo(dtype).eps * (A.double().abs() @ dense.abs().t() + bias.double().abs())
    result = F.gemv_4bit(A, packed, state=state)
    assert result.dtype == dtype
    assert ((result - expected).abs() <= bound).all()
    with_bias = F.gemm_4bit(A, packed, state, bias)
    assert ((with_bias - (expected + bias)).abs() <= bound).all()
    out = torch.empty_like(result)
    assert F.gemv_4bit(A, packed, out, state=state) is out
    assert torch.equal(out, result)


def test_gemm_with_any_blocksize_of_the_scales(device: str) -> None:
    weight = torch.randn(24, 100, device=device)
    packed, state = F.quantize_4bit(weight, blocksize=32)
    for blocksize in (1, 7, 64, 4096):
        scales, offset = state.absmax, state.absmax.mean()
        codes, state2 = F.quantize_blockwise(scales - offset, blocksize=blocksize)
        nested = F.QuantState(
            codes, state.shape, state.code, 32, "fp4", torch.float32, offset, state2
        )
        A = torch.randn(3, 100, device=device)
        expected = A @ F.dequantize_4bit(packed, nested).t()
        torch.testing.assert_close(F.gemm_4bit(A, packed, nested), expected, rtol=0, atol=1e-4)


def test_wrong_arguments_of_gemv() -> None:
    packed, state = F.quantize_4bit(torch.randn(8, 64))
    A = torch.randn(1, 64)
    with pytest.raises(ValueError, match="^state: expected"):
        F.gemv_4bit(A, packed)
    for name in ("transposed_A", "transposed_B"):
        with pytest.raises(ValueError, match=f"^{name}: expected False"):
            F.gemv_4bit(A, packed, state=state, **{name: True})
    with pytest.raises(ValueError, match="^A: expected a last dimension of 64"):
        F.gemv_4bit(A[:, :32], packed, state=state)
    for out in (torch.empty(2, 8), torch.empty(1, 8, dtype=torch.float16)):
        with pytest.raises(ValueError, match="^out: expected"):
            F.gemv_4bit(A, packed, out, state=state)
    with pytest.raises(ValueError, match="^B: expected 256 bytes"):
        F.gemv_4bit(A, packed[:-1], state=state)


def test_the_codebook_of_a_state_belongs_to_its_owner() -> None:
    A = torch.randn(64)
    _, state = F.quantize_4bit(A, compress_statistics=True)
    state.code.zero_()
    state.state2.code.zero_()
    packed, fresh = F.quantize_4bit(A, compress_statistics=True)
    assert torch.equal(fresh.code, F.get_4bit_type("fp4"))
    assert torch.equal(fresh.state2.code, F.create_dynamic_map())
    assert F.dequantize_4bit(packed, fresh).any()


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("compress_statistics", [False, True])
@pytest.mark.parametrize("shape", [(96, 192), (7, 33), (5,), (0, 4)])
def test_scale_search_lowers_the_error(quant_type, compress_statistics, shape):
    A, importance = torch.randn(shape), torch.rand(shape[-1]).pow(4)
    how = {"quant_type": quant_type, "compress_statistics": compress_statistics}

    def error(weights, **search):
        decoded = F.dequantize_4bit(*F.quantize_4bit(A, **how, **search))
        return ((A - decoded).square() * weights).sum()

    ones = torch.ones(shape[-1])
    plain, searched = error(ones), error(ones, scale_search=True)
    weighted = error(importance, scale_search=True, importance=importance)
    if A.numel() > 1000:
        assert searched < plain
        assert weighted < error(importance, scale_search=True)
    elif not compress_statistics:
        assert searched <= plain * (1 + 1e-5)


def test_scale_search_chooses_codes_for_the_scales_as_decoded():
    A = torch.randn(64, 64) * torch.rand(64, 1)
    packed, state = F.quantize_4bit(
        A, quant_type="nf4", compress_statistics=True, scale_search=True
    )
    scales = state.float_absmax()
    assert (scales < 0).any()
    entries = (A / scales.unsqueeze(1)).unsqueeze(2) - state.code
    decoded = F.dequantize_4bit(packed, state) / scales.unsqueeze(1)
    nearest = entries.abs().amin(dim=2)
    assert torch.allclose((A / scales.unsqueeze(1) - decoded).abs(), nearest, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e20])
def test_only_ratios_of_importance_count(factor):
    A, importance = torch.randn(8, 128), torch.rand(128) + 0.01
    first = F.quantize_4bit(A, scale_search=True, importance=importance)
    second = F.quantize_4bit(A, scale_search=True, importance=importance * factor)
    assert (first[0] != second[0]).double().mean() < 0.01


def test_importance_is_checked():
    A = torch.randn(2, 64)
    for importance in (torch.full((64,), -1.0), torch.full((64,), float("nan")), torch.ones(63)):
        with pytest.raises(ValueError, match="^importance: "):
            F.quantize_4bit(A, scale_search=True, importance=importance)
    with pytest.raises(ValueError, match="^importance: expected None"):
        F.quantize_4bit(A, importance=torch.ones(64))
