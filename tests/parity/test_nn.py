"""Layers against bitsandbytes: the same bits from the same weights, and checkpoints both ways.

bitsandbytes repacks a 4-bit weight in its first forward pass without gradients, on CPUs with
AVX512-BF16. Its values are taken before, and its forward passes here all ask for gradients.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from bnbx import nn

bnb = pytest.importorskip("bitsandbytes")

STORAGES = [torch.uint8, torch.bfloat16, torch.float16, torch.float32]
NAMES = [
    *("Linear4bit", "LinearNF4", "LinearFP4", "Linear8bitLt", "Params4bit", "Int8Params"),
    *("Embedding", "StableEmbedding", "Embedding4bit", "EmbeddingNF4", "EmbeddingFP4"),
    *("Embedding8bit", "OutlierAwareLinear"),
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(bits(a[k]), bits(b[k])) for k in a)


def pair(weight: Tensor, cls: str, **settings: Any) -> tuple[Any, Any]:
    """Return a quantized layer of bitsandbytes and one of ours, made from the same weight."""
    layers = []
    for module in (bnb.nn, nn):
        layer = getattr(module, cls)(weight.shape[1], weight.shape[0], **settings)
        layer.to(weight.dtype)
        layer.weight.data.copy_(weight)
        layers.append(layer)
    if layers[0].bias is not None:
        layers[1].bias.data.copy_(layers[0].bias)
    return layers[0].to("cpu"), layers[1].to("cpu")


def forward(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    return y.detach().float(), x.grad.float()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("cls", ["LinearNF4", "LinearFP4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear4bit(dtype: torch.dtype, cls: str, nested: bool, storage: torch.dtype) -> None:
    weight = torch.randn(48, 192).to(dtype)
    theirs, ours = pair(weight, cls, compress_statistics=nested, quant_storage=storage)
    expected, state_dict = theirs.state_dict(), ours.state_dict()
    assert list(state_dict) == list(expected)
    for key, value in expected.items():
        if key == "weight.nested_absmax":  # Ours sums the scales' mean in another order.
            torch.testing.assert_close(state_dict[key], value, rtol=1e-5, atol=0.0)
        elif key == "weight.absmax" and nested:
            assert (state_dict[key].int() - value.int()).abs().max() <= 1
        elif "quant_state" not in key:
            assert torch.equal(bits(state_dict[key]), bits(value)), key
    x = torch.randn(5, 192).to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for a, b in zip(forward(theirs, x), forward(ours, x), strict=True):
        assert (a - b).norm() <= tolerance * a.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.bfloat16])
def test_linear4bit_under_autocast(dtype: torch.dtype, compute_dtype: torch.dtype | None) -> None:
    settings = {"compress_statistics": False, "compute_dtype": compute_dtype}
    theirs, ours = pair(torch.randn(48, 192), "LinearNF4", **settings)
    x = torch.randn(5, 192).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected, y = theirs(x), ours(x)
    assert y.dtype == expected.dtype == dtype
    assert (y - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("cls", ["LinearNF4", "LinearFP4"])
def test_4bit_checkpoints_both_ways(
    cls: str, nested: bool, storage: torch.dtype, quantized: bool
) -> None:
    settings = {"compress_statistics": nested, "quant_storage": storage}
    theirs, other = pair(torch.randn(48, 100), cls, **settings)
    ours = getattr(nn, cls)(100, 48, **settings)
    ours = ours.to("cpu") if quantized else ours
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert same(ours.state_dict(), theirs.state_dict())
    assert torch.equal(
        ours.weight.dequantize(),
        bnb.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state),
    )
    # And back, in the way that transformers loads: bitsandbytes' own load_state_dict cannot.
    entries = other.state_dict()
    stats = {k.removeprefix("weight."): v for k, v in entries.items() if k.startswith("weight.")}
    theirs.weight = bnb.nn.Params4bit.from_prequantized(
        entries["weight"], stats, device="cpu", module=theirs
    )
    values = bnb.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    assert torch.equal(other.weight.dequantize(), values)
    x = torch.randn(3, 100)
    torch.testing.assert_close(forward(theirs, x)[0], forward(other, x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_linear8bit(threshold: float, bias: bool) -> None:
    weight = torch.randn(48, 192).half()
    settings = {"has_fp16_weights": False, "threshold": threshold, "bias": bias}
    theirs, ours = pair(weight, "Linear8bitLt", **settings)
    assert same(ours.state_dict(), theirs.state_dict())
    x = torch.randn(5, 192).half()
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        assert (theirs(x) - ours(x)).float().norm() <= 5e-3 * ours(x).float().norm()
    # After their forward pass the scales are in the state, and have to be saved all the same.
    assert same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("quantized", [False, True])
def test_8bit_checkpoints_both_ways(quantized: bool) -> None:
    settings = {"has_fp16_weights": False, "threshold": 6.0}
    theirs, other = pair(torch.randn(48, 100).half(), "Linear8bitLt", **settings)
    ours = nn.Linear8bitLt(100, 48, **settings).half()
    ours = ours.to("cpu") if quantized else ours
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert same(ours.state_dict(), theirs.state_dict())
    back = bnb.nn.Linear8bitLt(100, 48, **settings).half().to("cpu")
    back.load_state_dict(other.state_dict(), strict=True)
    assert same(back.state_dict(), other.state_dict())


@pytest.mark.parametrize("cls", ["EmbeddingNF4", "EmbeddingFP4", "Embedding8bit"])
@pytest.mark.parametrize("dim", [64, 100])
def test_quantized_embeddings(dim: int, cls: str) -> None:
    weight = torch.randn(30, dim).half().float()
    layers = [getattr(module, cls)(30, dim) for module in (bnb.nn, nn)]
    for layer in layers:
        layer.weight.data.copy_(weight)
    theirs, ours = (layer.to("cpu") for layer in layers)
    ids = torch.randint(0, 30, (3, 4))
    torch.testing.assert_close(ours(ids), theirs(ids), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cls", ["Embedding", "StableEmbedding"])
def test_embeddings(cls: str) -> None:
    theirs, ours = (getattr(module, cls)(30, 16, padding_idx=1) for module in (bnb.nn, nn))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ids = torch.arange(30)
    torch.testing.assert_close(ours(ids), theirs(ids))


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name: str) -> None:
    ours, theirs = (getattr(module, name) for module in (nn, bnb.nn))
    method = "__new__" if name.endswith(("Params", "Params4bit")) else "__init__"
    expected = inspect.signature(getattr(theirs, method)).parameters
    found = inspect.signature(getattr(ours, method)).parameters
    named = [n for n in expected if n != "kwargs"]
    assert [n for n in found if n != "kwargs"][: len(named)] == named
    for parameter in named:
        assert found[parameter].default == expected[parameter].default, parameter


def test_attributes() -> None:
    theirs, ours = pair(torch.randn(8, 64), "LinearNF4")
    assert vars(ours.weight).keys() == vars(theirs.weight).keys()
    own = {"support_avx512bf16_for_cpu"}
    assert vars(ours).keys() == vars(theirs).keys() - own
    theirs, ours = pair(torch.randn(8, 64), "Linear8bitLt", has_fp16_weights=False)
    assert vars(ours.weight).keys() == vars(theirs.weight).keys() | {"quantized_from"}
    assert vars(ours).keys() == vars(theirs).keys()
