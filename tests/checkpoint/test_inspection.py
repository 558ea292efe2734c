"""inspect_checkpoint: errors against a few lines of PyTorch, sizes against the files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import bnbx
from bnbx.checkpoint import inspect_checkpoint, quantize_checkpoint
from bnbx.checkpoint.inspection import OUTLIER

from .models import gpt2, save

KINDS = {"nf4": {"double_quant": True}, "fp4": {"blocksize": 32}, "int8": {}}


def decoded(weight, kind, double_quant=False, blocksize=64):
    if kind == "int8":
        codes, scales, _ = bnbx.functional.int8_vectorwise_quant(weight)
        return codes * scales[:, None] / 127
    packed, state = bnbx.functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=double_quant, quant_type=kind
    )
    return bnbx.functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("kind", KINDS)
def test_errors(tmp_path, llama_path, kind):
    options = KINDS[kind]
    dst = tmp_path / "dst"
    quantize_checkpoint(llama_path, dst, kind, progress=False, **options)
    on_the_fly = inspect_checkpoint(llama_path, kind=kind, progress=False, **options)
    compared = inspect_checkpoint(dst, reference=llama_path, progress=False)
    assert len(compared.weights) == 14
    # JSON, which has a length only when it is written, is left out by neither.
    assert on_the_fly == compared
    tensors = {}
    for file in llama_path.glob("*.safetensors"):
        tensors |= load_file(file)
    for found in compared.weights:
        exact = tensors[found.name].float()
        change = decoded(tensors[found.name], kind, **options).float() - exact
        assert found.kind == kind
        assert found.shape == tuple(exact.shape)
        assert found.relative_error == pytest.approx(
            (change.norm() / exact.norm()).item(), rel=1e-5
        )
        assert found.max_error == pytest.approx(change.abs().max().item(), rel=1e-4)
        rms = exact.square().mean().sqrt()
        share = (exact.abs() > OUTLIER * rms).float().mean().item()
        assert found.outlier_share == pytest.approx(share, abs=1e-9)
    errors = [weight.relative_error for weight in compared.weights]
    assert errors == sorted(errors, reverse=True)
    written = load_file(dst / "model.safetensors")
    total = compared.bytes_quantized + compared.bytes_others
    assert total == sum(tensor.nbytes for tensor in written.values())


def test_conv1d(tmp_path):
    """c_proj of the attention is square: its shape does not say that it lies transposed."""
    save(gpt2(), tmp_path / "src")
    quantize_checkpoint(tmp_path / "src", tmp_path / "dst", progress=False)
    for found in (
        inspect_checkpoint(tmp_path / "dst", reference=tmp_path / "src", progress=False),
        inspect_checkpoint(tmp_path / "src", progress=False),
    ):
        assert len(found.weights) == 8
        assert all(0.05 < weight.relative_error < 0.13 for weight in found.weights)


def test_without_a_reference(tmp_path, llama_path):
    quantize_checkpoint(llama_path, tmp_path / "dst", progress=False)
    found = inspect_checkpoint(tmp_path / "dst", progress=False)
    assert {(w.relative_error, w.max_error) for w in found.weights} == {(None, None)}
    sizes = [weight.bytes for weight in found.weights]
    assert sizes == sorted(sizes, reverse=True)
    assert "  -  " in str(found)
    assert json.loads(json.dumps(found.as_dict()))["bytes_others"] == found.bytes_others


def test_of_bnbx_state_dicts(tmp_path):
    """What save_file makes of a state_dict, without a config.json."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, 4))
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    report = bnbx.quantize_(model, "int8", progress=False)
    save_file(model.state_dict(), tmp_path / "b.safetensors")
    found = inspect_checkpoint(
        tmp_path / "b.safetensors", reference=tmp_path / "a.safetensors", progress=False
    )
    errors = {weight.name: weight.relative_error for weight in found.weights}
    expected = {f"{layer.name}.weight": layer.relative_error for layer in report.layers}
    assert errors == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_of_one_bare_layer(tmp_path, kind):
    """A file of one layer: its entries have no module's name before them."""
    source, path = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    save_file(model[0].state_dict(), source)
    options = {} if kind == "int8" else {"double_quant": True, **KINDS[kind]}
    report = bnbx.quantize_(model, kind, progress=False, **options)
    entries = model[0].state_dict()
    save_file(entries, path)
    relative = pytest.approx(report.layers[0].relative_error, rel=1e-5)
    for reference, expected in ((source, relative), (None, None)):
        found = inspect_checkpoint(path, reference=reference, progress=False)
        (weight,) = found.weights
        assert (weight.name, weight.kind, weight.shape) == ("weight", kind, (8, 64))
        assert weight.relative_error == expected
        assert found.bytes_others == entries["bias"].nbytes
        assert weight.bytes == sum(t.nbytes for t in entries.values()) - found.bytes_others
    (on_the_fly,) = inspect_checkpoint(source, kind=kind, progress=False, **options).weights
    assert on_the_fly.relative_error == relative


def damaged(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.update({f"{n}.absmax": t[f"{n}.absmax"][1:].clone()}), "absmax: expected"),
        (lambda t, n: t.pop(f"{n}.quant_map"), "quant_map: expected an entry"),
        (lambda t, n: t.update({n: t[n][1:].clone()}), "bytes of packed codes"),
        (lambda t, n: t[f"{n}.absmax"].fill_(float("nan")), "finite values, got a NaN"),
    ],
)
def test_damaged_states(tmp_path, llama_path, change, message):
    name = "model.layers.0.mlp.up_proj.weight"
    quantize_checkpoint(llama_path, tmp_path / "dst", progress=False)
    damaged(tmp_path / "dst" / "model.safetensors", lambda tensors: change(tensors, name))
    with pytest.raises(ValueError, match=f"tensor {name}: .*{message}"):
        inspect_checkpoint(tmp_path / "dst", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, p: t.update({f"{p}SCB": t[f"{p}SCB"][1:].clone()}),
            "SCB: expected torch.float32",
        ),
        (lambda t, p: t.update({f"{p}SCB": t[f"{p}SCB"].half()}), "SCB: expected torch.float32"),
        (lambda t, p: t[f"{p}weight_format"].fill_(2), "weight_format: expected 0"),
        (lambda t, p: t.update({f"{p}weight": t[f"{p}weight"].half()}), "a matrix of torch.int8"),
    ],
)
def test_damaged_int8(tmp_path, llama_path, change, message):
    prefix = "model.layers.0.mlp.up_proj."
    quantize_checkpoint(llama_path, tmp_path / "dst", "int8", progress=False)
    damaged(tmp_path / "dst" / "model.safetensors", lambda tensors: change(tensors, prefix))
    with pytest.raises(ValueError, match=f"tensor {prefix}weight: .*{message}"):
        inspect_checkpoint(tmp_path / "dst", progress=False)


def test_arguments_that_are_refused(tmp_path, llama_path):
    dst = tmp_path / "dst"
    quantize_checkpoint(llama_path, dst, progress=False)
    for name, value in {"kind": "nf4", "double_quant": True, "blocksize": 128}.items():
        with pytest.raises(ValueError, match=f"{name}: expected the default, because"):
            inspect_checkpoint(dst, **{name: value})
    with pytest.raises(ValueError, match="reference: expected none"):
        inspect_checkpoint(llama_path, reference=llama_path)
    with pytest.raises(ValueError, match="reference: expected a checkpoint that is not quantized"):
        inspect_checkpoint(dst, reference=dst)
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="reference: expected a tensor model.layers"):
        inspect_checkpoint(dst, reference=tmp_path / "other.safetensors", progress=False)
    save_file({"a.qweight": torch.ones(2, 2)}, tmp_path / "gptq.safetensors")
    with pytest.raises(
        ValueError, match="weights in bitsandbytes' formats, got none, but the tensor"
    ):
        inspect_checkpoint(tmp_path / "gptq.safetensors")
