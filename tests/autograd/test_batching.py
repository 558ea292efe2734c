"""torch.vmap, torch.func and functional_call with quantized layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, vjp, vmap

from bnbx import nn

KINDS = {
    "nf4": lambda: nn.Linear4bit(64, 32, quant_type="nf4"),
    "fp4 plain": lambda: nn.Linear4bit(64, 32, compress_statistics=False),
    "int8": lambda: nn.Linear8bitLt(64, 32, has_fp16_weights=False),
    "int8 with outliers": lambda: nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=2.0),
}


@pytest.fixture(params=KINDS)
def layer(request: pytest.FixtureRequest, device: str) -> Any:
    return KINDS[request.param]().to(device)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_is_a_call_for_each(layer: Any, dim: int, gradients: bool, device: str) -> None:
    x = torch.randn(5, 5, 5, 64, device=device)
    with torch.set_grad_enabled(gradients):
        found = vmap(layer, in_dims=dim)(x)
        expected = torch.stack([layer(one) for one in x.unbind(dim)])
    torch.testing.assert_close(found, expected)


def test_vmap_over_biases(layer: Any, device: str) -> None:
    x, biases = torch.randn(3, 64, device=device), torch.randn(4, 32, device=device)
    found = vmap(lambda bias: functional_call(layer, {"bias": bias}, (x,)))(biases)
    expected = torch.stack([functional_call(layer, {"bias": bias}, (x,)) for bias in biases])
    torch.testing.assert_close(found, expected)


def test_gradients_of_each_sample(layer: Any, device: str) -> None:
    x = torch.randn(4, 3, 64, device=device)

    def loss(bias: Any, x: Any) -> Any:
        return functional_call(layer, {"bias": bias}, (x,)).square().sum()

    bias = layer.bias.detach()
    found = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(bias, x)
    for i, sample in enumerate(x):
        given = bias.clone().requires_grad_(), sample.clone().requires_grad_()
        expected = torch.autograd.grad(loss(*given), given)
        torch.testing.assert_close((found[0][i], found[1][i]), expected)


def test_vjp(layer: Any, device: str) -> None:
    x = torch.randn(3, 64, device=device)
    y, pull = vjp(layer, x)
    given = x.clone().requires_grad_()
    expected = torch.autograd.grad(layer(given), given, torch.ones_like(y))
    torch.testing.assert_close(pull(torch.ones_like(y)), expected)


def test_a_weight_from_elsewhere(layer: Any, device: str) -> None:
    x = torch.randn(3, 64, device=device)
    zeros = {"weight": torch.zeros_like(layer.weight.data), "bias": torch.zeros_like(layer.bias)}
    plain = {name: value.detach() for name, value in layer.named_parameters()}
    torch.testing.assert_close(functional_call(layer, plain, (x,)), layer(x))
    assert not torch.equal(functional_call(layer, zeros, (x,)), layer(x) - layer.bias)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch's jvp
def test_forward_mode_is_refused(layer: Any, device: str) -> None:
    x = torch.randn(3, 64, device=device)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(layer, (x,), (x,))
