"""Params4bit on its own: quantizing, moving, cutting, and what checkpoints make of it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from bnbx import functional as F
from bnbx.nn import LinearNF4, Params4bit
from bnbx.nn.params4bit import moved as state_on

STORAGES = [torch.uint8, torch.bfloat16, torch.float16, torch.float32]


def quantized(*shape: int, device: str = "cpu", **settings: Any) -> Params4bit:
    settings.setdefault("quant_type", "nf4")
    return Params4bit(torch.randn(shape), **settings).to(device)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("blocksize", [None, 32, 256])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_moving_quantizes(
    dtype: torch.dtype,
    quant_type: str,
    nested: bool,
    blocksize: int | None,
    storage: torch.dtype,
    device: str,
) -> None:
    weight = torch.randn(30, 34).to(dtype)
    settings = {"quant_type": quant_type, "compress_statistics": nested, "quant_storage": storage}
    parameter = Params4bit(weight, blocksize=blocksize, **settings)
    assert not parameter.bnb_quantized
    assert parameter.quant_state is None
    assert torch.equal(parameter, weight)
    assert parameter.to(device) is parameter
    packed, state = F.quantize_4bit(weight.to(device), blocksize=blocksize, **settings)
    assert torch.equal(parameter.data.view(torch.uint8), packed.view(torch.uint8))
    assert parameter.quant_state == state
    assert parameter.bnb_quantized
    assert not parameter.requires_grad
    assert parameter.data.dtype == storage
    assert torch.equal(parameter.dequantize(), F.dequantize_4bit(packed, state))


def test_a_move_with_a_dtype_converts_before_it_quantizes() -> None:
    weight = torch.randn(4, 64)
    parameter = Params4bit(weight.clone()).to("cpu", torch.bfloat16)
    assert parameter.quant_state.dtype == torch.bfloat16
    assert torch.equal(parameter.data, Params4bit(weight.bfloat16()).to("cpu").data)


@pytest.mark.parametrize("storage", STORAGES)
def test_no_move_touches_packed_codes(storage: torch.dtype) -> None:
    parameter = quantized(8, 64, quant_storage=storage)
    before, state = parameter.data.clone().view(torch.uint8), parameter.quant_state
    moves = [
        parameter.half(),
        parameter.float(),
        parameter.double(),
        parameter.bfloat16(),
        parameter.type(torch.float16),
        parameter.to(torch.float16),
        parameter.to(dtype=torch.float32),
        parameter.to("cpu", torch.float16),
        parameter.cpu(),
        parameter.to(torch.zeros(1, dtype=torch.float16)),
        parameter.to("cpu", copy=True),
    ]
    for moved in moves:
        assert isinstance(moved, Params4bit)
        assert moved.dtype == storage
        assert torch.equal(moved.data.view(torch.uint8), before)
        assert moved.quant_state is state
    assert moves[-1].data_ptr() != parameter.data_ptr()
    assert all(moved is parameter for moved in moves[:-1])
    assert parameter.type() == parameter.data.type()


def test_a_move_leaves_a_shared_state_alone() -> None:
    parameter = quantized(8, 64)
    shared = copy.copy(parameter)
    assert shared.quant_state is parameter.quant_state
    assert shared.to("meta").is_meta
    assert parameter.quant_state.absmax.device.type == "cpu"
    assert parameter.quant_state.state2.absmax.device.type == "cpu"
    parameter.data = parameter.data.clone()
    assert shared.quant_state is parameter.quant_state
    state = parameter.quant_state
    elsewhere = state_on(state, torch.device("meta"))
    assert elsewhere.absmax.is_meta
    assert elsewhere.state2.absmax.is_meta
    for tensor in (state.absmax, state.code, state.offset, *state.state2.as_dict().values()):
        assert not isinstance(tensor, Tensor) or tensor.device.type == "cpu"
    assert state_on(state, state.absmax.device) is state


def test_assigning_data_brings_the_state_along() -> None:
    first, second = quantized(8, 64), quantized(16, 64, quant_type="fp4", blocksize=128)
    module = LinearNF4(64, 8)
    module.weight = first
    first.data = second
    assert torch.equal(first.dequantize(), second.dequantize())
    assert (first.quant_type, first.blocksize) == ("fp4", 128)
    assert module.quant_state is second.quant_state
    unquantized = Params4bit(torch.randn(8, 64))
    unquantized.data = torch.zeros(8, 64)
    assert unquantized.quant_state is None
    assert not unquantized.bnb_quantized


def test_copies_and_pickles_stand_alone() -> None:
    module = LinearNF4(64, 8).to("cpu")
    parameter = module.weight
    values = parameter.dequantize()
    for other in (copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
        assert type(other) is Params4bit
        assert other.__dict__.keys() == parameter.__dict__.keys()
        assert other.module is None
        assert other.quant_state == parameter.quant_state
        other.data.zero_()
        other.quant_state.state2.absmax.zero_()
    assert torch.equal(parameter.dequantize(), values)
    shallow = copy.copy(parameter)
    assert shallow.quant_state is parameter.quant_state
    assert shallow.data_ptr() == parameter.data_ptr()


def test_two_references_to_one_parameter_stay_one() -> None:
    parameter = quantized(8, 64)
    a, b = copy.deepcopy([parameter, parameter])
    assert a is b
    a, b = pickle.loads(pickle.dumps([parameter, parameter]))
    assert a is b


def test_fsdp_finds_the_entries_by_name() -> None:
    parameter = quantized(16, 64)
    state = parameter.quant_state
    for name, value in {
        "absmax": state.absmax,
        "code": state.code,
        "quant_map": state.code,
        "offset": state.offset,
        "state2": state.state2,
        "nested_absmax": state.state2.absmax,
        "nested_blocksize": state.state2.blocksize,
        "nested_quant_map": state.state2.code,
        "nested_dtype": state.state2.dtype,
        "nested_offset": state.offset,
    }.items():
        assert getattr(parameter, name) is value
    assert parameter.quant_state.bitsandbytes__nf4.dtype == torch.uint8
    plain = quantized(16, 64, compress_statistics=False)
    assert not hasattr(plain, "nested_absmax")
    assert not hasattr(Params4bit(torch.randn(2, 2)), "absmax")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("nested", [False, True])
def test_from_prequantized(storage: torch.dtype, nested: bool, device: str) -> None:
    parameter = quantized(10, 34, quant_storage=storage, compress_statistics=nested, device=device)
    module = LinearNF4(34, 10)
    stats = parameter.quant_state.as_dict(packed=True)
    names = set(stats)
    other = Params4bit.from_prequantized(
        data=parameter.data,
        quantized_stats=stats,
        requires_grad=False,
        device=torch.device(device),
        module=module,
    )
    assert set(stats) == names
    assert module.quant_state is other.quant_state
    assert other.__dict__.keys() == parameter.__dict__.keys()
    for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage"):
        assert getattr(other, name) == getattr(parameter, name)
    assert other.bnb_quantized
    assert torch.equal(other.dequantize(), parameter.dequantize())


def test_from_prequantized_refuses_codes_of_something_else() -> None:
    parameter = quantized(10, 64)
    stats = parameter.quant_state.as_dict(packed=True)
    with pytest.raises(ValueError, match=r"data: expected 320 bytes .* \(10, 64\), got 319"):
        Params4bit.from_prequantized(parameter.data[1:], stats)
    with pytest.raises(ValueError, match=r"data: .*torch.int16"):
        Params4bit.from_prequantized(parameter.data.view(-1).view(torch.int16), stats)
    with pytest.raises(ValueError, match="absmax"):
        Params4bit.from_prequantized(parameter.data, {**stats, "absmax": stats["absmax"][1:]})


@pytest.mark.parametrize("storage", [torch.uint8, torch.float32])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("blocksize", [32, 64])
@pytest.mark.parametrize("shape", [(16, 64), (7, 96), (300, 64), (5, 13)])
def test_pieces_hold_their_part_or_say_that_they_cannot(
    shape: tuple[int, int], blocksize: int, nested: bool, storage: torch.dtype
) -> None:
    parameter = quantized(
        *shape, blocksize=blocksize, compress_statistics=nested, quant_storage=storage
    )
    whole = parameter.dequantize().view(-1)
    per_element = 2 * storage.itemsize
    for size in (parameter.numel() // 20 + 1, 3 * 16, 2048, 4096, 10_000):
        pieces = torch.split(parameter, size)
        data = torch.cat([piece.data for piece in pieces])
        assert torch.equal(data.view(torch.uint8), parameter.data.view(torch.uint8))
        for i, piece in enumerate(pieces):
            assert isinstance(piece, Params4bit)
            assert piece.bnb_quantized
            assert piece.module is None
            start = min(i * size * per_element, whole.numel())
            stop = min((i + 1) * size * per_element, whole.numel())
            if start % blocksize == 0 and (stop % blocksize == 0 or stop == whole.numel()):
                check_piece(piece, whole[start:stop], shape[1])
            else:
                assert piece.quant_state is None
                with pytest.raises(ValueError, match="quant_state"):
                    piece.dequantize()


def check_piece(piece: Params4bit, expected: Tensor, row: int) -> None:
    values = piece.dequantize()
    torch.testing.assert_close(values.view(-1), expected, rtol=1e-6, atol=0.0)
    if values.dim() == 2:
        assert values.shape[1] == row
    again = Params4bit.from_prequantized(piece.data, piece.quant_state.as_dict(packed=True))
    torch.testing.assert_close(again.dequantize(), values, rtol=1e-6, atol=0.0)


def test_every_way_to_cut() -> None:
    parameter = quantized(8, 64)
    whole = parameter.dequantize()
    cuts = [
        torch.chunk(parameter, 2),
        torch.chunk(input=parameter, chunks=2, dim=0),
        parameter.chunk(2),
        torch.split(parameter, 128),
        torch.split(parameter, [128, 128]),
        parameter.split(128, dim=0),
    ]
    for first, second in cuts:
        assert torch.equal(first.dequantize(), whole[:4])
        assert torch.equal(second.dequantize(), whole[4:])
        assert first.data_ptr() == parameter.data_ptr()
    assert parameter.quant_state.shape == (8, 64)
    y = torch.randn(3, 64) @ whole[4:].t()
    assert y.shape == (3, 4)


def test_pieces_of_an_unquantized_weight_quantize_on_their_own() -> None:
    weight = torch.randn(8, 64)
    module = LinearNF4(64, 8)
    module.weight.data.copy_(weight)
    first, second = torch.chunk(module.weight, 2)
    first, second = first.clone(), second.to("cpu")
    assert torch.equal(first, weight[:4])
    assert torch.equal(second.dequantize(), quantize(weight[4:]))
    assert module.quant_state is None
    assert torch.equal(module.weight, weight)


def quantize(weight: Tensor) -> Tensor:
    return Params4bit(weight.clone(), quant_type="nf4").to("cpu").dequantize()


@pytest.mark.parametrize("shape", [(0, 64), (4, 0), (1, 1), (3, 5)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    parameter = quantized(*shape)
    assert parameter.dequantize().shape == shape
    assert pickle.loads(pickle.dumps(parameter)).dequantize().shape == shape
    assert sum(piece.numel() for piece in torch.chunk(parameter, 2)) == parameter.numel()


def test_transformers_way_to_quantize() -> None:
    module = LinearNF4(64, 8, device="meta")
    module.weight.__dict__["_is_hf_initialized"] = True
    value = torch.randn(8, 64)
    old = module.weight
    new = Params4bit(value, requires_grad=False, **old.__dict__).to(value.device)
    assert new.bnb_quantized
    assert new._is_hf_initialized
    assert module.quant_state is new.quant_state
    module.weight = new
    assert torch.equal(new.dequantize(), quantize(value))


def test_pefts_way_to_merge() -> None:
    module = LinearNF4(64, 8).to("cpu")
    old, delta = module.weight, torch.randn(8, 64)
    merged = F.dequantize_4bit(old.data, old.quant_state) + delta
    kwargs = old.__dict__
    kwargs["bnb_quantized"] = False
    kwargs["requires_grad"] = False
    kwargs.pop("data", None)
    module.weight = Params4bit(merged.to("cpu"), **kwargs).to(old.device)
    assert torch.equal(module.weight.dequantize(), quantize(merged))
    assert module.quant_state is module.weight.quant_state


def test_wrong_settings_are_refused_when_it_quantizes() -> None:
    weight = torch.randn(4, 64)
    for name, value in {"quant_type": "nf5", "blocksize": 48, "quant_storage": torch.int32}.items():
        parameter = Params4bit(weight, **{name: value})
        with pytest.raises(ValueError, match=name):
            parameter.to("cpu")
        assert torch.equal(parameter, weight)
        assert not parameter.bnb_quantized
    with pytest.raises(ValueError, match="dtype"):
        Params4bit(weight.double()).to("cpu")
