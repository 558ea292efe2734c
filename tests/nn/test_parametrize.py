"""replace_parameter_4bit: parameters of any shape in 4 bits, decoded where they are read."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import parametrize

from bnbx.functional import QuantState, dequantize_4bit, quantize_4bit
from bnbx.nn.parametrize import (
    Bnb4bitParametrization,
    packed_parameter,
    replace_parameter_4bit,
    replace_parameter_4bit_prequantized,
    restore_parameter,
)

SHAPE = (3, 10, 64)


class Stack(torch.nn.Module):
    """A module with a parameter of three dimensions that its forward reads twice."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(SHAPE).to(dtype))
        self.bias = torch.nn.Parameter(torch.randn(10).to(dtype))

    def forward(self, x):
        return x @ self.weight[0].t() + x @ self.weight[2].t() + self.bias


def expected_of(stack, **settings):
    packed, state = quantize_4bit(stack.weight.data, quant_type="nf4", **settings)
    return packed, dequantize_4bit(packed, state)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_is_stored_in_4_bits_and_read_in_its_dtype(nested, dtype):
    stack = Stack(dtype)
    packed, values = expected_of(stack, compress_statistics=nested, blocksize=128)
    replace_parameter_4bit(stack, "weight", compress_statistics=nested, blocksize=128)
    assert torch.equal(stack.weight, values)
    assert stack.weight.dtype is dtype
    assert not stack.weight.requires_grad
    (codes,) = [p for name, p in stack.named_parameters() if "weight" in name]
    assert torch.equal(codes, packed)
    assert codes.dtype is torch.uint8
    assert not codes.requires_grad
    x = torch.randn(2, 64, dtype=dtype, requires_grad=True)
    stack(x).sum().backward()
    torch.testing.assert_close(x.grad[0], (values[0] + values[2]).sum(0), rtol=2e-2, atol=2e-2)


def test_a_forward_decodes_once_and_keeps_nothing(monkeypatch):
    stack = Stack()
    replace_parameter_4bit(stack, "weight")
    count = []
    decode = Bnb4bitParametrization.forward
    monkeypatch.setattr(
        Bnb4bitParametrization, "forward", lambda self, x: count.append(1) or decode(self, x)
    )
    stack(torch.randn(2, 64))
    assert len(count) == 1
    with pytest.raises(RuntimeError):
        stack(torch.randn(2, 63))
    assert not parametrize._cache_enabled
    assert not parametrize._cache


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_is_loaded_strictly(nested, assign):
    saved = Stack()
    replace_parameter_4bit(saved, "weight", compress_statistics=nested)
    entries = saved.state_dict()
    names = {"weight", "bias", "weight.absmax", "weight.quant_map"}
    names.add("weight.quant_state.bitsandbytes__nf4")
    assert names <= entries.keys()
    assert not any("parametrizations" in name for name in entries)
    model = torch.nn.Sequential(Stack())
    replace_parameter_4bit(model[0], "weight", compress_statistics=not nested, quant_type="fp4")
    model.load_state_dict({f"0.{k}": v for k, v in entries.items()}, assign=assign)
    assert torch.equal(model[0].weight, saved.weight)
    after = model[0].state_dict()
    assert after.keys() == entries.keys()
    assert all(torch.equal(after[name], entries[name]) for name in entries)
    if not assign:  # the module has its own memory
        entries["weight.absmax"].zero_()
        assert not torch.equal(model[0].weight, saved.weight)


def test_prequantized_codes_are_read_with_their_state():
    saved, loaded = Stack(), Stack()
    replace_parameter_4bit(saved, "weight", compress_statistics=True)
    entries = saved.state_dict()
    codes = entries.pop("weight")
    statistics = {name: value for name, value in entries.items() if name != "bias"}
    loaded.weight = torch.nn.Parameter(codes, requires_grad=False)
    replace_parameter_4bit_prequantized(loaded, "weight", statistics, "cpu")
    assert torch.equal(loaded.weight, saved.weight)
    assert loaded.state_dict().keys() == saved.state_dict().keys()


def test_unquantized_values_are_quantized_when_they_are_loaded():
    source, stack = Stack(), Stack()
    replace_parameter_4bit(stack, "weight")
    _, values = expected_of(source)
    stack.load_state_dict(source.state_dict())
    assert torch.equal(stack.weight, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("weight"), 'Missing key.*"weight"'),
        (lambda d: d.pop("weight.absmax"), "absmax: expected an entry"),
        (lambda d: d.update({"weight": d["weight"][:-1]}), "weight: expected 960 bytes"),
        (lambda d: d.update({"weight.extra": torch.ones(1)}), "qs_dict: expected entries among"),
        (lambda d: d.update({"weight.absmax": torch.ones(3)}), "absmax: expected 30 elements"),
        (
            lambda d: [d.pop(k) for k in [*d] if k.startswith("weight.")],
            "weight: expected floating point of shape",
        ),
    ],
)
def test_a_malformed_checkpoint_changes_nothing(change, message):
    stack = Stack()
    replace_parameter_4bit(stack, "weight")
    before = stack.weight.clone()
    entries = {name: value.clone() for name, value in stack.state_dict().items()}
    change(entries)
    with pytest.raises(RuntimeError, match=message):
        stack.load_state_dict(entries)
    assert torch.equal(stack.weight, before)


def test_a_state_of_another_shape_is_refused():
    stack, other = Stack(), Stack()
    other.weight = torch.nn.Parameter(torch.randn(10, 3, 64))
    replace_parameter_4bit(stack, "weight")
    replace_parameter_4bit(other, "weight")
    with pytest.raises(RuntimeError, match=r"weight.quant_state: expected shape \(3, 10, 64\)"):
        stack.load_state_dict(other.state_dict())


def test_copies_and_conversions():
    stack = Stack()
    replace_parameter_4bit(stack, "weight", compress_statistics=True)
    before = stack.weight.clone()
    twin = copy.deepcopy(stack)
    stack.half().to("cpu").bfloat16()
    assert torch.equal(stack.weight, before)
    assert stack.bias.dtype is torch.bfloat16
    assert torch.equal(twin.weight, before)
    twin.load_state_dict(
        {**twin.state_dict(), "weight": torch.zeros_like(twin.state_dict()["weight"])}
    )
    assert torch.equal(stack.weight, before)
    assert not torch.equal(twin.weight, before)


def test_restoring_a_copy_leaves_the_original():
    stack = Stack()
    replace_parameter_4bit(stack, "weight")
    twin = copy.deepcopy(stack)
    restore_parameter(twin, "weight")
    assert isinstance(twin._parameters["weight"], torch.nn.Parameter)
    assert torch.equal(twin.weight, stack.weight)
    x = torch.randn(2, 64)
    torch.testing.assert_close(twin(x), stack(x))


def test_packed_parameter_knows_what_lies_on_top():
    stack = Stack()
    assert packed_parameter(stack, "weight") is None
    replace_parameter_4bit(stack, "weight")
    codes, state, _ = packed_parameter(stack, "weight")
    assert torch.equal(dequantize_4bit(codes, state), stack.weight)
    assert isinstance(state, QuantState)
    parametrize.register_parametrization(stack, "weight", torch.nn.Identity())
    assert packed_parameter(stack, "weight") is None
    assert stack.state_dict().keys() >= {"weight", "weight.absmax"}


def test_restoring_and_quantizing_again():
    stack = Stack()
    before = type(stack), stack.state_dict().keys()
    replace_parameter_4bit(stack, "weight")
    values = stack.weight.clone()
    for _ in range(2):
        restore_parameter(stack, "weight")
        assert (type(stack), stack.state_dict().keys()) == before
        assert torch.equal(stack.weight, values)
        assert stack.weight.requires_grad
        replace_parameter_4bit(stack, "weight")
        stack.load_state_dict(stack.state_dict())
        torch.testing.assert_close(stack.weight, values, rtol=0, atol=1e-6)
    restore_parameter(stack, "weight", torch.bfloat16)
    assert stack.weight.dtype is torch.bfloat16
    with pytest.raises(ValueError, match="name: expected the name of a parameter in 4 bits"):
        restore_parameter(stack, "weight")


def test_what_is_no_parameter_is_refused():
    stack = Stack()
    for replace in (
        lambda name: replace_parameter_4bit(stack, name),
        lambda name: replace_parameter_4bit_prequantized(stack, name, {}, "cpu"),
    ):
        with pytest.raises(AttributeError, match="has no parameter 'weights'"):
            replace("weights")
        with pytest.raises(TypeError, match="expected the name of a parameter, 'forward'"):
            replace("forward")
    replace_parameter_4bit(stack, "weight")
    with pytest.raises(TypeError, match="quantized already"):
        replace_parameter_4bit(stack, "weight")
    with pytest.raises(ValueError, match="blocksize: expected one of"):
        replace_parameter_4bit(stack, "bias", blocksize=63)
