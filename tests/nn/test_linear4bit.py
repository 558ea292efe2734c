"""Linear4bit: what it computes, in which dtype, and what it is called with."""

from __future__ import annotations

import inspect

import pytest
import torch

from bnbx.nn import Linear4bit, LinearFP4, LinearNF4

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("cls", [LinearNF4, LinearFP4])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(100,), (1, 100), (7, 100), (2, 3, 100), (0, 100)])
def test_forward_and_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, bias: bool, nested: bool, cls: type, device: str
) -> None:
    layer = cls(100, 36, bias=bias, compress_statistics=nested).to(device)
    weight = layer.weight.dequantize()
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    exact = x.detach().float().requires_grad_()
    expected = torch.nn.functional.linear(exact, weight, layer.bias)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(y.float(), expected, **tolerance)
    y.float().square().sum().backward()
    grad_bias = None if layer.bias is None else layer.bias.grad.clone()
    layer.zero_grad()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad.float(), exact.grad, rtol=0.05, atol=20 * TOLERANCE[dtype])
    if bias:
        torch.testing.assert_close(
            grad_bias, layer.bias.grad, rtol=0.05, atol=20 * TOLERANCE[dtype]
        )
    assert layer.weight.grad is None


@pytest.mark.parametrize("input_dtype", DTYPES)
@pytest.mark.parametrize("compute_dtype", DTYPES)
def test_the_compute_dtype_given(compute_dtype: torch.dtype, input_dtype: torch.dtype) -> None:
    layer = LinearNF4(64, 8, compute_dtype=compute_dtype).to("cpu")
    x = torch.randn(3, 64).to(input_dtype)
    y = layer(x)
    assert layer.compute_dtype == compute_dtype
    assert y.dtype == input_dtype
    other = LinearNF4(64, 8)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(y, other(x.to(compute_dtype)).to(input_dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_compute_dtype_of_the_first_input(dtype: torch.dtype) -> None:
    layer = LinearNF4(64, 8).to("cpu")
    assert not layer.compute_type_is_set
    layer(torch.randn(1, 64).to(dtype))
    assert layer.compute_type_is_set
    assert layer.compute_dtype == (None if dtype == torch.float16 else dtype)
    for other in DTYPES:
        x = torch.randn(2, 64).to(other)
        y = layer(x)
        assert y.dtype == other
        assert torch.equal(y, layer(x.to(layer.compute_dtype or other)).to(other))


@pytest.mark.parametrize("input_dtype", DTYPES)
@pytest.mark.parametrize("compute_dtype", DTYPES)
def test_autocast_leaves_a_compute_dtype_alone(
    compute_dtype: torch.dtype, input_dtype: torch.dtype, device: str
) -> None:
    layer = LinearNF4(64, 8, compute_dtype=compute_dtype).to(device)
    x = torch.randn(3, 64, device=device).to(input_dtype).requires_grad_()
    expected = layer(x)
    (gradient,) = torch.autograd.grad(expected.float().square().sum(), x)
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
        (gradient_too,) = torch.autograd.grad(y.float().square().sum(), x)
    assert y.dtype == input_dtype
    assert torch.equal(y, expected)
    assert torch.equal(gradient_too, gradient)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_says_what_to_compute_in_until_something_else_does(
    dtype: torch.dtype, device: str
) -> None:
    layer = LinearNF4(64, 8).to(device)
    x = torch.randn(3, 64, device=device).to(dtype)
    for autocast in (torch.bfloat16, torch.float16):
        with torch.autocast(device, autocast):
            y = layer(x)
        other = LinearNF4(64, 8, compute_dtype=autocast)
        other.load_state_dict(layer.state_dict())
        assert y.dtype == dtype
        assert torch.equal(y, other.to(device)(x))
    expected = layer(x)
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
    if dtype != torch.float16:  # float16 settles nothing
        assert torch.equal(y, expected)


@pytest.mark.parametrize("enabled", [False, True])
def test_compiled_code_follows_autocast(enabled: bool, device: str) -> None:
    layer = LinearNF4(64, 8).to(device)
    x = torch.randn(3, 64, device=device)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=enabled):
        y = compiled(x)
        assert torch.equal(y, layer(x))


def test_the_first_release_names_work() -> None:
    names = list(inspect.signature(Linear4bit).parameters)
    assert names[:8] == [
        *("input_features", "output_features", "bias", "compute_dtype", "compress_statistics"),
        *("quant_type", "quant_storage", "device"),
    ]
    for cls in (LinearNF4, LinearFP4):
        assert list(inspect.signature(cls).parameters)[:7] == [
            n for n in names[:8] if n != "quant_type"
        ]
    assert Linear4bit(4, 4).weight.quant_type == "fp4"
    assert LinearNF4(4, 4).weight.quant_type == "nf4"
    assert Linear4bit(4, 4, quant_storage=torch.float16).quant_storage == torch.float16


def test_the_keys_of_a_state_dict() -> None:
    nested = ["weight.nested_absmax", "weight.nested_quant_map"]
    keys = ["weight", "bias", "weight.absmax", "weight.quant_map"]
    state = "weight.quant_state.bitsandbytes__"
    assert list(LinearNF4(64, 8).to("cpu").state_dict()) == [*keys, *nested, f"{state}nf4"]
    plain = LinearFP4(64, 8, compress_statistics=False).to("cpu")
    assert list(plain.state_dict()) == [*keys, f"{state}fp4"]
    assert list(LinearNF4(64, 8).state_dict()) == ["weight", "bias"]


def test_a_checkpoint_decides_on_type_blocksize_and_nesting() -> None:
    source = Linear4bit(128, 8, quant_type="nf4", blocksize=128).to("cpu")
    layer = LinearFP4(128, 8, compress_statistics=False, quant_storage=torch.float16)
    layer.load_state_dict(source.state_dict())
    weight = layer.weight
    assert (weight.quant_type, weight.blocksize, weight.compress_statistics) == ("nf4", 128, True)
    # The storage is the layer's, as dtypes are when a state_dict is copied.
    assert weight.dtype == weight.quant_storage == torch.float16
    assert torch.equal(weight.dequantize(), source.weight.dequantize())
    layer.load_state_dict(source.state_dict(), assign=True)
    assert layer.weight.dtype == layer.weight.quant_storage == torch.uint8
    assert torch.equal(layer.weight.dequantize(), source.weight.dequantize())


@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
@pytest.mark.parametrize("target", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 8), (3, 3), (5, 1)])
def test_codes_load_into_another_storage(
    shape: tuple[int, int], target: torch.dtype, source: torch.dtype
) -> None:
    first, second = LinearNF4(*shape, quant_storage=source), LinearNF4(*shape, quant_storage=target)
    second.load_state_dict(first.to("cpu").state_dict())
    assert second.weight.dtype == target
    assert torch.equal(second.weight.dequantize(), first.weight.dequantize())
    assert (
        torch.equal(second.weight.data, LinearNF4_of(first.weight.dequantize(), target).weight.data)
        or target != torch.uint8
    )


def LinearNF4_of(weight: torch.Tensor, storage: torch.dtype) -> LinearNF4:  # noqa: N802
    layer = LinearNF4(weight.shape[1], weight.shape[0], quant_storage=storage)
    layer.weight.data.copy_(weight)
    return layer.to("cpu")


@pytest.mark.parametrize("quantized", [False, True])
def test_a_float_weight_loads(quantized: bool) -> None:
    plain = torch.nn.Linear(64, 8)
    layer = LinearNF4(64, 8)
    if quantized:
        layer.to("cpu")
    layer.load_state_dict(plain.state_dict())
    assert layer.weight.bnb_quantized is quantized
    layer.to("cpu")
    assert torch.equal(
        layer.weight.data, LinearNF4_of(plain.weight.detach(), torch.uint8).weight.data
    )
    assert torch.equal(layer.bias, plain.bias)


def test_packed_codes_without_a_state_are_refused() -> None:
    state_dict = {k: v for k, v in LinearNF4(64, 8).to("cpu").state_dict().items() if "." not in k}
    with pytest.raises(RuntimeError, match=r"weight\.absmax, weight\.quant_map"):
        LinearNF4(64, 8).load_state_dict(state_dict)


def test_fsdp_leaves_a_plain_tensor_and_the_module_knows_the_state() -> None:
    layer, x = LinearNF4(64, 8).to("cpu"), torch.randn(2, 64)
    y, state_dict = layer(x), layer.state_dict()
    data = layer.weight.data.clone()
    layer.weight = torch.nn.Parameter(data, requires_grad=False)
    assert torch.equal(layer(x), y)
    assert list(layer.state_dict()) == list(state_dict)
    del layer.weight
    layer.weight = data
    assert torch.equal(layer(x), y)
    assert type(layer.weight) is torch.Tensor
    other = LinearNF4(64, 8).to("cpu")
    other.weight = torch.nn.Parameter(torch.zeros_like(data), requires_grad=False)
    other.load_state_dict(state_dict)
    assert torch.equal(other(x), y)
    with pytest.raises(RuntimeError, match="absmax"):
        other.load_state_dict({k: v for k, v in state_dict.items() if k != "weight.absmax"})
    assert torch.equal(other(x), y)


def test_a_new_weight_replaces_the_state() -> None:
    layer = LinearNF4(64, 8).to("cpu")
    other = LinearNF4(64, 8).to("cpu")
    layer.weight = other.weight
    assert layer.quant_state is other.quant_state
    assert other.weight.module is other
    layer.weight = LinearNF4(64, 8).weight
    assert layer.quant_state is None
    assert layer.state_dict().keys() == {"weight", "bias"}
