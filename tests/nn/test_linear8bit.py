"""Linear8bitLt: what it computes, and where its codes and scales are found."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from bnbx.nn import Int8Params, Linear8bitLt

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("threshold", [0.0, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(100,), (1, 100), (2, 3, 100), (0, 100)])
@pytest.mark.parametrize("has_fp16_weights", [False, True])
def test_forward_and_gradients(
    has_fp16_weights: bool,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    bias: bool,
    threshold: float,
    device: str,
) -> None:
    layer = Linear8bitLt(
        *(100, 36), bias=bias, has_fp16_weights=has_fp16_weights, threshold=threshold
    )
    weight = layer.weight.detach().clone().to(device)
    layer.to(device)
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    exact = x.detach().float().requires_grad_()
    expected = torch.nn.functional.linear(exact, weight, layer.bias)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    y.float().sum().backward()
    layer.zero_grad() if not has_fp16_weights else None
    grad = torch.ones_like(expected) @ weight
    torch.testing.assert_close(x.grad.float(), grad, rtol=0.05, atol=0.05)
    if has_fp16_weights and x.numel():
        rows = exact.detach().reshape(-1, 100).sum(0).expand(36, -1)
        torch.testing.assert_close(layer.weight.grad, rows, rtol=0.05, atol=0.05)
    else:
        assert layer.weight.grad is None or not x.numel()


def test_where_the_codes_and_scales_are() -> None:
    layer = Linear8bitLt(64, 8, has_fp16_weights=False)
    assert layer.weight.CB is None
    assert layer.weight.SCB is None
    assert layer.state.CB is None
    layer.to("cpu")
    for _ in range(2):
        assert layer.weight.dtype == torch.int8
        assert layer.state.CB is layer.weight.CB
        assert layer.state.SCB is layer.weight.SCB
        assert layer.weight.CB.data_ptr() == layer.weight.data_ptr()
        assert layer.weight.SCB.shape == (8,)
        layer(torch.randn(2, 64))
    layer.init_8bit_state()
    assert layer.state.SCB is layer.weight.SCB


def test_the_state_follows_the_weight() -> None:
    layer, other = (Linear8bitLt(64, 8, has_fp16_weights=False).to("cpu") for _ in range(2))
    x = torch.randn(2, 64)
    layer(x)
    layer.weight = other.weight
    layer.bias = other.bias
    assert torch.equal(layer(x), other(x))
    # As accelerate does, behind the module's back.
    third = Linear8bitLt(64, 8, has_fp16_weights=False).to("cpu")
    layer._parameters["weight"] = third.weight
    layer.bias = third.bias
    assert torch.equal(layer(x), third(x))
    assert layer.state.SCB is third.weight.SCB
    layer.state.SCB = None
    assert torch.equal(layer(x), third(x))
    layer.weight = Int8Params(torch.randn(8, 64), requires_grad=False)
    assert layer.state.SCB is None
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_pefts_way_to_merge() -> None:
    layer = Linear8bitLt(64, 8, has_fp16_weights=False).to("cpu")
    layer(torch.randn(2, 64))
    merged = layer.weight.dequantize() + 1.0
    layer.weight = Int8Params(
        merged.to("cpu"), requires_grad=False, has_fp16_weights=layer.weight.has_fp16_weights
    ).to(layer.weight.device)
    layer.state.reset_grads()
    if layer.state.SCB is None:
        layer.state.SCB = layer.weight.SCB
    torch.testing.assert_close(layer.weight.dequantize(), merged, rtol=0.0, atol=0.01)
    x = torch.randn(2, 64)
    torch.testing.assert_close(
        layer(x), torch.nn.functional.linear(x, merged, layer.bias), rtol=0.05, atol=0.2
    )


def test_training_mode_is_the_states_too() -> None:
    layer = Linear8bitLt(64, 8, has_fp16_weights=False)
    assert layer.state.is_training
    layer.eval()
    assert not layer.state.is_training
    assert layer.train().state.is_training


def test_weights_in_floating_point_are_quantized_anew() -> None:
    layer = Linear8bitLt(64, 8, bias=False)
    assert layer.weight.requires_grad
    x = torch.randn(2, 64)
    layer.eval()
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2.0)
    torch.testing.assert_close(layer(x), 2.0 * y)
    assert list(layer.state_dict()) == ["weight"]
    assert layer.half().weight.dtype == torch.float16


def test_int8_codes_do_not_load_into_weights_in_floating_point() -> None:
    source = Linear8bitLt(64, 8, has_fp16_weights=False).to("cpu")
    layer = Linear8bitLt(64, 8, has_fp16_weights=True)
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="has_fp16_weights=False"):
        layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_float_weight_loads(quantized: bool) -> None:
    plain = torch.nn.Linear(64, 8)
    layer = Linear8bitLt(64, 8, has_fp16_weights=False)
    if quantized:
        layer.to("cpu")
    layer.load_state_dict(plain.state_dict())
    assert layer.weight.holds_codes is quantized
    expected = Int8Params(plain.weight.detach().clone()).to("cpu")
    assert torch.equal(layer.to("cpu").weight.data, expected.data)
    assert torch.equal(layer.weight.SCB, expected.SCB)


@pytest.mark.parametrize("value", [1, 2, 7])
def test_other_layouts_of_the_codes_are_refused(value: int) -> None:
    state_dict = Linear8bitLt(64, 8, has_fp16_weights=False).to("cpu").state_dict()
    assert state_dict["weight_format"].dtype == torch.uint8
    state_dict["weight_format"] = torch.tensor(value, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=f"weight_format: expected 0, .* got {value}"):
        Linear8bitLt(64, 8, has_fp16_weights=False).load_state_dict(state_dict)


def test_a_checkpoint_without_the_layout_loads() -> None:
    source = Linear8bitLt(64, 8, has_fp16_weights=False).to("cpu")
    state_dict = source.state_dict()
    del state_dict["weight_format"]
    layer = Linear8bitLt(64, 8, has_fp16_weights=False)
    layer.load_state_dict(state_dict)
    x = torch.randn(2, 64)
    assert torch.equal(layer(x), source(x))


def test_the_first_release_names_work() -> None:
    assert list(inspect.signature(Linear8bitLt).parameters) == [
        *("input_features", "output_features", "bias", "has_fp16_weights", "threshold"),
        *("index", "device"),
    ]
    layer = Linear8bitLt(4, 8, False, False, 6.0, [1, 2])
    assert (layer.index, layer.state.threshold, layer.bias) == ([1, 2], 6.0, None)
    assert not layer.state.has_fp16_weights
    assert layer.state.use_pool


def test_a_pickle_holds_the_codes_once() -> None:
    import pickle

    layer = Linear8bitLt(512, 256, has_fp16_weights=False).to("cpu")
    assert len(pickle.dumps(layer)) < 1.5 * 512 * 256
    assert copy.deepcopy(layer).state.CB.data_ptr() != layer.state.CB.data_ptr()
