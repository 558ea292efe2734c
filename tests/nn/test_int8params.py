"""Int8Params on its own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from bnbx import functional as F
from bnbx.nn import Int8Params


def quantized(*shape: int, dtype: torch.dtype = torch.float32) -> Int8Params:
    return Int8Params(torch.randn(shape).to(dtype), requires_grad=False).to("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (0, 4), (4, 0)])
def test_moving_quantizes(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    weight = torch.randn(shape).to(dtype)
    parameter = Int8Params(weight)
    assert parameter.requires_grad
    assert parameter.CB is None
    assert parameter.to(device) is parameter
    codes, scales, _ = F.int8_vectorwise_quant(weight.to(device))
    assert torch.equal(parameter.data, codes)
    assert torch.equal(parameter.SCB, scales)
    assert parameter.SCB.dtype == torch.float32
    assert parameter.CB.data_ptr() == parameter.data_ptr()
    assert not parameter.requires_grad
    assert parameter.quantized_from == dtype
    error = (parameter.dequantize().cpu() - weight.float()).abs()
    assert (error <= parameter.SCB.cpu().unsqueeze(1) / 254 + 1e-6).all()


def test_a_weight_to_be_trained_stays() -> None:
    weight = torch.randn(4, 8)
    parameter = Int8Params(weight, has_fp16_weights=True).to("cpu")
    assert torch.equal(parameter, weight)
    assert parameter.half().dtype == torch.float16
    assert parameter.half().has_fp16_weights
    first, second = parameter.chunk(2)
    (first.sum() + 2 * second.sum()).backward()
    assert parameter.grad.view(-1).unique().tolist() == [1.0, 2.0]


def test_no_move_touches_codes() -> None:
    parameter = quantized(4, 8)
    before, scales = parameter.data.clone(), parameter.SCB.clone()
    for moved in (
        parameter.half(),
        parameter.float(),
        parameter.to(torch.bfloat16),
        parameter.to("cpu", torch.float16),
        parameter.to("cpu", copy=True),
        parameter.type(torch.float16),
        parameter.cpu(),
    ):
        assert isinstance(moved, Int8Params)
        assert torch.equal(moved.data, before)
        assert torch.equal(moved.SCB, scales)
        assert moved.CB.data_ptr() == moved.data_ptr()


def test_assigning_data() -> None:
    first, second = quantized(4, 8), quantized(6, 8)
    first.data = second
    assert torch.equal(first.dequantize(), second.dequantize())
    assert first.CB.data_ptr() == second.data_ptr()
    first.data = torch.randn(4, 8)
    assert first.CB is None
    assert first.SCB is None
    assert not first.holds_codes


def test_copies_and_pickles_stand_alone() -> None:
    parameter = quantized(4, 8)
    values = parameter.dequantize()
    for other in (copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
        assert type(other) is Int8Params
        assert other.__dict__.keys() == parameter.__dict__.keys()
        assert torch.equal(other.dequantize(), values)
        assert other.CB.data_ptr() == other.data_ptr()
        other.data.zero_()
        other.SCB.zero_()
    assert torch.equal(parameter.dequantize(), values)
    shallow = copy.copy(parameter)
    assert shallow.data_ptr() == parameter.data_ptr()
    assert shallow.SCB is parameter.SCB


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_pieces_hold_their_part(dim: int, size: int) -> None:
    parameter = quantized(6, 7)
    pieces = torch.split(parameter, size, dim=dim)
    assert all(isinstance(piece, Int8Params) for piece in pieces)
    assert all(piece.SCB.shape == (piece.shape[0],) for piece in pieces)
    decoded = torch.cat([piece.dequantize() for piece in pieces], dim=dim)
    assert torch.equal(decoded, parameter.dequantize())


def test_pieces_of_an_unquantized_weight() -> None:
    weight = torch.randn(6, 7)
    _, second = torch.chunk(Int8Params(weight.clone(), requires_grad=False), 2)
    assert torch.equal(second, weight[3:])
    assert torch.equal(second.to("cpu").dequantize(), copy_of(weight[3:]).dequantize())


def copy_of(weight: torch.Tensor) -> Int8Params:
    return Int8Params(weight.clone()).to("cpu")


def test_transformers_way_to_load() -> None:
    parameter = quantized(4, 8)
    blank = Int8Params(torch.empty(4, 8, device="meta"), requires_grad=False)
    blank.data = blank.data.to(torch.int8)
    kwargs = blank.__dict__
    kwargs["SCB"] = parameter.SCB
    loaded = Int8Params(parameter.data, requires_grad=False, **kwargs).to("cpu")
    assert torch.equal(loaded.dequantize(), parameter.dequantize())
    assert loaded.CB.data_ptr() == parameter.data_ptr()


def test_codes_given_as_CB() -> None:  # noqa: N802
    parameter = quantized(4, 8)
    other = Int8Params(CB=parameter.CB, SCB=parameter.SCB)
    assert torch.equal(other.dequantize(), parameter.dequantize())


def test_codes_without_scales_do_not_decode() -> None:
    with pytest.raises(ValueError, match="SCB"):
        Int8Params(torch.zeros(2, 2, dtype=torch.int8)).dequantize()
