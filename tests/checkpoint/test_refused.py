"""Checkpoints that are not quantized: nothing appears, and the error says which file or tensor."""

from __future__ import annotations

import json
import os
import shutil
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from bnbx.checkpoint import output, quantize_checkpoint

from .models import gpt2, llama, raw, save

INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path, llama_path):
    return shutil.copytree(llama_path, tmp_path / "src")


def refused(source, message, kind=ValueError, **options):
    """Check that nothing stands beside the source afterwards."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(kind, match=message):
        quantize_checkpoint(source, source.parent / "dst", progress=False, **options)
    assert sorted(source.parent.iterdir()) == before


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(source, change):
    """Change the tensors of the first file that has a query projection."""
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        name = next((n for n in tensors if "q_proj" in n), None)
        if name:
            change(tensors, name)
            save_file(tensors, path)
            return name
    raise AssertionError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "target", ["q_proj.weight", "input_layernorm.weight", "embed_tokens.weight"]
)
def test_values_that_are_no_numbers(tmp_path, value, target):
    model = llama()
    save(model, tmp_path / "src")
    tensors = load_file(tmp_path / "src" / "model.safetensors")
    name = next(n for n in tensors if n.endswith(target))
    tensors[name].view(-1)[-3] = value
    save_file(tensors, tmp_path / "src" / "model.safetensors")
    refused(tmp_path / "src", f"tensor {name}: expected finite values, got a NaN")


def test_a_destination_that_exists(tmp_path, llama_path):
    for dst in (tmp_path / "directory", tmp_path / "file", tmp_path / "link"):
        if dst.name == "directory":
            dst.mkdir()
        elif dst.name == "file":
            dst.touch()
        else:
            dst.symlink_to("nowhere")
        with pytest.raises(ValueError, match="dst: expected a path where there is nothing"):
            quantize_checkpoint(llama_path, dst, progress=False)
    with pytest.raises(ValueError, match="in a directory that exists"):
        quantize_checkpoint(llama_path, tmp_path / "no" / "dst", progress=False)


def test_a_destination_that_appears_meanwhile(tmp_path, monkeypatch, llama_path):
    dst = tmp_path / "dst"
    write = output.write_file

    def slow(path, data):
        dst.mkdir(exist_ok=True)
        (dst / "precious").touch()
        write(path, data)

    monkeypatch.setattr("bnbx.checkpoint.job.write_file", slow)
    with pytest.raises(ValueError, match="which exists"):
        quantize_checkpoint(llama_path, dst, progress=False)
    assert [path.name for path in dst.iterdir()] == ["precious"]
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


def test_a_disk_that_is_too_small(source, monkeypatch):
    usage = types.SimpleNamespace(free=output.SPARE + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(source, "a disk with .* bytes free, got")


def test_pickles(tmp_path):
    for name in ("model.bin", "model.pt", "model.pth", "model.pkl"):
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(ValueError, match="got a pickle, which can run code"):
            quantize_checkpoint(tmp_path / name, tmp_path / "dst", progress=False)
    source = tmp_path / "src"
    source.mkdir()
    (source / "config.json").write_text("{}")
    refused(source, "expected safetensors, got none")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    refused(source, "got a pickle")


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="got nothing at"):
        quantize_checkpoint(tmp_path / "src", tmp_path / "dst")


def test_truncated(source):
    path = sorted(source.glob("*.safetensors"))[1]
    os.truncate(path, path.stat().st_size - 1)
    refused(source, f"{path.name}: expected .* the file is truncated")


def test_quantized_already(tmp_path, source):
    dst = tmp_path / "once"
    quantize_checkpoint(source, dst, progress=False)
    refused(dst, "not quantized, got quantization_config in config.json .'bitsandbytes'")
    config = json.loads((dst / "config.json").read_text())
    del config["quantization_config"]
    (dst / "config.json").write_text(json.dumps(config))
    refused(dst, "not quantized, got the tensor .*absmax")


def test_a_weight_of_integers(source):
    def change(tensors, name):
        tensors[name] = tensors[name].to(torch.int8)

    name = edit_tensors(source, change)
    refused(source, f"tensor {name}: expected one of .* quantized already")


def test_several_files_without_an_index(source):
    (source / INDEX).unlink()
    refused(source, "shards and model.safetensors.index.json, got only")


def test_one_file_and_shards(source):
    """transformers takes the one file."""
    save_file({"a": torch.zeros(1)}, source / "model.safetensors")
    refused(source, "expected model.safetensors or model.safetensors.index.json, got both")


def test_weights_that_the_config_names(source):
    edit_json(source / "config.json", transformers_weights="adapter_model.bin")
    refused(source, "transformers_weights: expected .*, got 'adapter_model.bin'")


def test_a_file_of_another_name(tmp_path):
    (tmp_path / "src").mkdir()
    save_file({"a.weight": torch.zeros(64, 64)}, tmp_path / "src" / "adapter_model.safetensors")
    refused(tmp_path / "src", "expected model.safetensors, or shards")


def test_settings_that_a_file_has_no_place_for(tmp_path):
    source = tmp_path / "a.safetensors"
    save_file({"a.weight": torch.zeros(64, 64)}, source)
    for kind, settings in (
        ("nf4", {"max_shard_size": 1}),
        ("nf4", {"compute_dtype": torch.float16}),
        ("int8", {"threshold": 3.0}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected the default"):
            quantize_checkpoint(source, tmp_path / "b.safetensors", kind, **settings)


def test_a_file_of_gpt2(tmp_path):
    save(gpt2(), tmp_path / "src")
    with pytest.raises(ValueError, match="a Conv1D"):
        quantize_checkpoint(tmp_path / "src" / "model.safetensors", tmp_path / "b.safetensors")


def test_a_tensor_in_two_files(source):
    first, second = sorted(source.glob("*.safetensors"))[:2]
    tensors = load_file(first)
    save_file({**load_file(second), **tensors}, second)
    refused(source, "tensor .*: expected one, got two, in")


def test_a_tensor_that_the_index_lacks(source):
    def change(tensors, _):
        tensors["extra"] = torch.ones(3)

    edit_tensors(source, change)
    refused(source, "every tensor, got not extra")


def test_a_tensor_that_only_the_index_has(source):
    name = edit_tensors(source, lambda tensors, name: tensors.pop(name))
    refused(source, f"got no tensor {name}, which")


@pytest.mark.parametrize(
    "file", ["../other.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "\0.safetensors"]
)
def test_an_index_that_leads_out(source, file):
    shutil.copyfile(min(source.glob("*.safetensors")), source.parent / "other.safetensors")
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    weight_map[next(iter(weight_map))] = file
    edit_json(source / INDEX, weight_map=weight_map)
    refused(source, "expected files in that directory, got")


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 3}, {"a": "model.bin"}])
def test_an_index_that_is_none(source, weight_map):
    edit_json(source / INDEX, weight_map=weight_map)
    refused(source, "a weight_map|names of .safetensors files")


@pytest.mark.parametrize("name", ["model-00001-of-", "tokenizer.json", "config.json"])
def test_links_that_lead_out(tmp_path, source, name):
    secret = tmp_path / "secret"
    path = next(path for path in sorted(source.iterdir()) if path.name.startswith(name))
    shutil.move(path, secret)
    path.symlink_to(secret)
    refused(source, f"{path.name}: expected a link within the directory")


def test_links_of_the_cache_are_followed(tmp_path, llama_path):
    """huggingface_hub keeps files as blobs and links to them from a directory per revision."""
    root = tmp_path / "models--a--b"
    snapshot = root / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for i, path in enumerate(sorted(llama_path.iterdir())):
        shutil.copyfile(path, root / "blobs" / f"{i}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    report = quantize_checkpoint(snapshot, tmp_path / "dst", progress=False)
    assert len(report.quantized) == 14
    assert not any(path.is_symlink() for path in (tmp_path / "dst").iterdir())


def test_a_link_to_nothing(source):
    (source / "added_tokens.json").symlink_to("nothing")
    refused(source, "added_tokens.json: expected a regular file, got nothing")


@pytest.mark.parametrize("name", ["added_tokens.json", "model-00001-of-", "config.json"])
def test_a_link_to_itself(source, name):
    names = [path.name for path in sorted(source.iterdir()) if path.name.startswith(name)]
    name = names[0] if names else name
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(name)
    refused(source, "expected a regular file, got nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no-such-model"}, "a model_type of transformers, got 'no-such-model'"),
        ({"model_type": ["llama"]}, "a model_type of transformers"),
        ({"architectures": ["pipeline"]}, "architectures: expected a class of transformers"),
        ({"architectures": ["NoSuchModel"]}, "architectures: expected a class of transformers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected at most"),
        ({"hidden_size": "wide"}, "config.json: expected one of a 'llama'"),
        ({"hidden_size": 10**30}, "config.json: expected one of a LlamaForCausalLM"),
        ({"num_attention_heads": 0}, "config.json: expected one of a"),
        ({"hidden_size": 128}, "expected shape .* as config.json says"),
    ],
)
def test_a_config_of_another_model(source, changes, message):
    edit_json(source / "config.json", **changes)
    refused(source, message)


def test_a_config_that_is_no_json(source):
    (source / "config.json").write_text("{")
    refused(source, "config.json: expected a JSON object")


def test_names_say_too_little_of_gpt2(tmp_path):
    save(gpt2(), tmp_path / "src")
    refused(tmp_path / "src", "'model' for 'gpt2', to know its layouts", layers_from="names")


def test_a_name_that_a_quantized_weight_needs(tmp_path):
    tensors = {"a.weight": torch.ones(4, 4), "a.weight.quant_map": torch.ones(16)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="names of tensors that are free, got a.weight.quant_map"):
        quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", progress=False)


def test_a_file_that_is_to_become_a_directory(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(raw({}))
    with pytest.raises(ValueError, match="a name that ends in .safetensors"):
        quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b", progress=False)
