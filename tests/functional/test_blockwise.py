"""Blockwise 8-bit quantization against brute force."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx import functional as F
from bnbx.functional.blockwise import _dynamic_map

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CODES = {
    "dynamic": F.create_dynamic_map(),
    "unsigned": F.create_dynamic_map(signed=False),
    "linear": F.create_linear_map(),
    "fp8": F.create_fp8_map(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("blocksize", [1, 64, 100, 256, 4096])
@pytest.mark.parametrize("shape", [(1,), (7, 37), (2, 3, 100), (0, 5)])
def test_every_value_takes_the_nearest_code(
    dtype: torch.dtype, name: str, blocksize: int, shape: tuple[int, ...], device: str
) -> None:
    A = torch.randn(shape, device=device).to(dtype)
    A = A.abs() if name == "unsigned" else A
    code = CODES[name]
    codes, state = F.quantize_blockwise(A, code.to(device), blocksize=blocksize)
    assert codes.dtype == torch.uint8
    assert codes.shape == A.shape
    assert (state.blocksize, state.dtype, state.nested) == (blocksize, dtype, False)

    flat = A.float().cpu().view(-1)
    absmax = torch.tensor([block.abs().max() for block in flat.split(blocksize) if len(block)])
    assert torch.equal(state.absmax.cpu(), absmax)
    scale = absmax[torch.arange(flat.numel()) // blocksize]
    distances = ((flat / scale).unsqueeze(1) - code).abs()
    chosen = distances.gather(1, codes.cpu().view(-1, 1).long()).view(-1)
    assert (chosen <= distances.amin(1) + 1e-6).all()

    expected = (code[codes.cpu().view(-1).int()] * scale).to(dtype).view(shape)
    values = F.dequantize_blockwise(codes, state)
    assert values.dtype == dtype
    assert torch.equal(values.cpu(), expected)


def test_defaults(device: str) -> None:
    A = torch.randn(5000, device=device)
    codes, state = F.quantize_blockwise(A)
    assert state.blocksize == 4096
    assert torch.equal(state.code.cpu(), F.create_dynamic_map())
    assert state.code.device == A.device
    values = F.dequantize_blockwise(codes, state)
    assert torch.equal(F.dequantize_blockwise(codes, absmax=state.absmax), values)
    again = F.dequantize_blockwise(codes, absmax=state.absmax, code=state.code, blocksize=4096)
    assert torch.equal(again, values)


def test_nested(device: str) -> None:
    A = torch.randn(100, 64, device=device)
    codes, plain = F.quantize_blockwise(A, blocksize=32)
    nested_codes, state = F.quantize_blockwise(A, blocksize=32, nested=True)
    assert torch.equal(nested_codes, codes)
    assert state.nested
    assert state.state2.blocksize == 32
    assert torch.equal(state.offset, plain.absmax.mean())
    absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(state.float_absmax(), absmax)
    expected = F.dequantize_blockwise(codes, absmax=absmax, blocksize=32)
    assert torch.equal(F.dequantize_blockwise(codes, state), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_decodes_to_nan(bad: float, device: str) -> None:
    A = torch.randn(1000, device=device)
    A[300] = bad
    values = F.dequantize_blockwise(*F.quantize_blockwise(A, blocksize=256))
    assert values[256:512].isnan().all()
    assert values[:256].isfinite().all()
    assert values[512:].isfinite().all()


def test_zeros_and_strides(device: str) -> None:
    zeros = torch.zeros(3, 100, device=device)
    assert not F.dequantize_blockwise(*F.quantize_blockwise(zeros)).any()
    A = torch.randn(40, 60, device=device)
    for view in (A.t(), A[::2, ::3], A[:, :1].expand(40, 9)):
        codes, state = F.quantize_blockwise(view, blocksize=64)
        expected, expected_state = F.quantize_blockwise(view.contiguous(), blocksize=64)
        assert torch.equal(codes, expected)
        assert state == expected_state
    codes, state = F.quantize_blockwise(A.t().contiguous(), blocksize=64)
    expected = F.dequantize_blockwise(codes, state)
    strided = codes.t().contiguous().t()
    assert torch.equal(F.dequantize_blockwise(strided, state), expected)


def test_outputs_given_by_the_caller(device: str) -> None:
    A = torch.randn(10, 100, dtype=torch.float16, device=device)
    expected, expected_state = F.quantize_blockwise(A, blocksize=64)
    out, absmax = torch.empty_like(expected), torch.empty_like(expected_state.absmax)
    codes, state = F.quantize_blockwise(A, absmax=absmax, out=out, blocksize=64)
    assert codes is out
    assert state.absmax is absmax
    assert torch.equal(out, expected)
    assert torch.equal(absmax, expected_state.absmax)
    values = torch.empty_like(A)
    assert F.dequantize_blockwise(codes, state, out=values) is values
    assert torch.equal(values, F.dequantize_blockwise(codes, state))


def test_wrong_arguments() -> None:
    A = torch.randn(100)
    codes, state = F.quantize_blockwise(A)
    for kwargs, blamed in (
        ({"blocksize": 0}, "blocksize"),
        ({"code": torch.zeros(16)}, "code"),
        ({"code": torch.zeros(256, dtype=torch.float16)}, "code"),
        ({"out": torch.empty(99, dtype=torch.uint8)}, "out"),
        ({"out": torch.empty(100)}, "out"),
        ({"absmax": torch.empty(2)}, "absmax"),
    ):
        with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
            F.quantize_blockwise(A, **kwargs)
    with pytest.raises(ValueError, match="^A: expected dtype"):
        F.quantize_blockwise(A.double())
    for kwargs, blamed in (
        ({}, "quant_state"),
        ({"absmax": torch.ones(1), "nested": True}, "nested"),
        ({"absmax": torch.ones(2)}, "absmax"),
        ({"absmax": torch.ones(1).half()}, "absmax"),
        ({"absmax": torch.ones(1), "code": torch.ones(16)}, "code"),
        ({"quant_state": state, "out": torch.empty(100).half()}, "out"),
    ):
        with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
            F.dequantize_blockwise(codes, **kwargs)
    with pytest.raises(ValueError, match="^A: expected dtype torch.uint8"):
        F.dequantize_blockwise(codes.int(), state)


def test_the_cached_map_is_out_of_reach(device: str) -> None:
    A = torch.randn(100, device=device)
    codes, state = F.quantize_blockwise(A)
    expected = F.dequantize_blockwise(codes, state)
    state.code.zero_()
    fresh_codes, fresh = F.quantize_blockwise(A)
    assert torch.equal(F.dequantize_blockwise(fresh_codes, fresh), expected)
    code = F.create_dynamic_map().to(device)
    _, state = F.quantize_blockwise(A, code)
    assert state.code is not code


def test_first_use_while_another_device_is_the_default() -> None:
    _dynamic_map.cache_clear()
    with torch.device("meta"):
        _, state = F.quantize_blockwise(torch.ones(100, device="cpu"))
    assert torch.equal(state.code, F.create_dynamic_map())
