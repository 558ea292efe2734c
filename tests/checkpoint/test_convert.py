"""quantize_checkpoint: the bytes that quantize_ and state_dict give, in files that loaders read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bnbx
from bnbx.checkpoint import Checkpoint, quantize_checkpoint
from bnbx.checkpoint.convert import make_settings
from bnbx.checkpoint.tensor_file import MAX_METADATA

from .models import gpt2, llama, mixtral, save

CASES = {
    "nf4": {},
    "nf4 nested": {"double_quant": True},
    "fp4": {"kind": "fp4", "blocksize": 128},
    "nf4 in bfloat16": {"storage_dtype": torch.bfloat16, "double_quant": True},
    "int8": {"kind": "int8", "threshold": 5.0},
}
#: The default of the files for what `quantize_` nests.
NOT_NESTED = {"double_quant": False}


def load(path):
    files = sorted(path.glob("*.safetensors"))
    tensors = {}
    for file in files:
        tensors |= load_file(file)
    return tensors


def check_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        # As bytes: codes that are stored as floating point may be NaN, which equals nothing.
        assert torch.equal(got[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


def by_quantize_(model, kind="nf4", storage_dtype=torch.uint8, **options):
    """Return the state_dict of the model quantized in memory."""
    if kind != "int8":
        options = {**NOT_NESTED, "quant_storage": storage_dtype, **options}
    bnbx.quantize_(model, kind, skip="lm_head", progress=False, **options)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_same_keys_and_bytes_as_in_memory(tmp_path, case, dtype):
    options = CASES[case]
    model = save(llama(attention_bias=True), tmp_path / "src", dtype)
    report = quantize_checkpoint(tmp_path / "src", tmp_path / "dst", progress=False, **options)
    expected = by_quantize_(model, **options)
    check_equal(load(tmp_path / "dst"), expected)
    assert report.layers_from == "model"
    assert len(report.quantized) == 14
    assert {t.kind for t in report.quantized} == {options.get("kind", "nf4")}
    states = sum(t.nbytes for name, t in expected.items() if ".quant_state." in name)
    assert report.bytes_after == sum(t.nbytes for t in expected.values()) - states
    assert report.bytes_before == sum(t.nbytes for t in load(tmp_path / "src").values())


def test_shards(tmp_path, llama_path):
    assert len(list(llama_path.glob("*.safetensors"))) > 2
    whole, many = tmp_path / "whole", tmp_path / "many"
    quantize_checkpoint(llama_path, whole, progress=False)
    report = quantize_checkpoint(llama_path, many, max_shard_size=20_000, progress=False)
    check_equal(load(many), load(whole))
    assert sorted(p.name for p in many.iterdir()) == sorted(report.files)
    files = sorted(many.glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    index = json.loads((many / "model.safetensors.index.json").read_text())
    for file in files:
        names = load_file(file).keys()
        assert {name for name, where in index["weight_map"].items() if where == file.name} == names
        # What belongs to a weight is in one file.
        assert all(n.split(".absmax")[0] in names for n in names if n.endswith(".absmax"))
    Checkpoint(many).__exit__()  # agrees with its index


def test_config_is_that_of_transformers(tmp_path, llama_path):
    for i, (options, theirs) in enumerate(
        [
            (
                {"double_quant": True, "storage_dtype": torch.float16},
                {
                    "load_in_4bit": True,
                    "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_use_double_quant": True,
                    "bnb_4bit_compute_dtype": "bfloat16",
                    "bnb_4bit_quant_storage": "float16",
                },
            ),
            (
                {"kind": "fp4", "compute_dtype": torch.float16, "skip": ["q_proj"]},
                {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"},
            ),
            ({"kind": "int8", "threshold": 3}, {"load_in_8bit": True, "llm_int8_threshold": 3.0}),
        ]
    ):
        quantize_checkpoint(llama_path, tmp_path / f"{i}", progress=False, **options)
        config = json.loads((tmp_path / f"{i}" / "config.json").read_text())
        got = config.pop("quantization_config")
        assert config == json.loads((llama_path / "config.json").read_text())
        skipped = (
            [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)] if "skip" in options else []
        )
        assert got["llm_int8_skip_modules"] == sorted(["lm_head", *skipped])
        theirs["llm_int8_skip_modules"] = got["llm_int8_skip_modules"]
        assert got == transformers.BitsAndBytesConfig(**theirs).to_dict()


def test_conv1d_is_transposed(tmp_path):
    model = save(gpt2(), tmp_path / "src")
    report = quantize_checkpoint(tmp_path / "src", tmp_path / "dst", progress=False)
    assert len(report.quantized) == 8
    got = load(tmp_path / "dst")
    for name, weight in model.state_dict().items():
        if name not in {tensor.name for tensor in report.quantized}:
            continue
        packed, state = bnbx.functional.quantize_4bit(weight.t(), quant_type="nf4")
        assert tuple(state.shape) == tuple(weight.shape[::-1])
        assert torch.equal(got[name], packed)
        stored = {key: t for key, t in got.items() if key.startswith(f"{name}.")}
        assert bnbx.functional.QuantState.from_dict(stored, "cpu") == state


def test_copies_text_and_leaves_the_rest(tmp_path, llama_path):
    source = shutil.copytree(llama_path, tmp_path / "src")
    for name in ("pytorch_model.bin", "consolidated.00.pth", ".secret", "tf_model.h5"):
        (source / name).write_bytes(b"x")
    (source / "onnx").mkdir()
    report = quantize_checkpoint(source, tmp_path / "dst", progress=False)
    left = {"pytorch_model.bin", "consolidated.00.pth", ".secret", "tf_model.h5", "onnx"}
    assert set(report.left_out) == left
    names = {path.name for path in (tmp_path / "dst").iterdir()}
    expected = {"LICENSE", "config.json", "generation_config.json", "tokenizer.json"}
    assert names == {*expected, "model.safetensors"}
    for name in ("tokenizer.json", "LICENSE"):
        assert (tmp_path / "dst" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["self_attn"], 6),
        (["layers.1"], 7),
        (["model.layers.0.mlp.down_proj"], 13),
        (["*.up_proj", "q_proj"], 10),
        ("layers.0", 7),
    ],
)
def test_skip(tmp_path, llama_path, skip, left):
    report = quantize_checkpoint(llama_path, tmp_path / "dst", skip=skip, progress=False)
    assert len(report.quantized) == left
    assert report.unused_skips == ()
    written = load(tmp_path / "dst")
    for tensor in report.tensors:
        assert (f"{tensor.name}.absmax" in written) == (tensor.kind == "nf4")
        assert (tensor.kind == "kept") == bool(tensor.reason)


@pytest.mark.parametrize("layers_from", ["model", "names"])
def test_experts_are_named_with_what_quantizes_them(tmp_path, layers_from):
    save(mixtral(), tmp_path / "src")
    report = quantize_checkpoint(
        tmp_path / "src", tmp_path / "dst", layers_from=layers_from, progress=False
    )
    prefix = "model.layers.*.block_sparse_moe.experts.*"
    names = tuple(f"{prefix}.{name}.weight" for name in ("w1", "w2", "w3"))
    assert report.experts == names
    line, advice = str(report).splitlines()[-2:]
    assert line == f"Experts stay as they are: {', '.join(names)}"
    assert advice.endswith('load the result and call bnbx.quantize_(model, "nf4", skip="lm_head").')


def test_nothing_is_said_of_experts_where_there_are_none(tmp_path, llama_path):
    report = quantize_checkpoint(llama_path, tmp_path / "dst", progress=False)
    assert report.experts == ()
    assert "xperts" not in str(report)


def test_unused_skips_are_told(tmp_path, llama_path):
    report = quantize_checkpoint(llama_path, tmp_path / "dst", skip=["qproj"], progress=False)
    assert report.unused_skips == ("qproj",)
    assert "'qproj' is the name of no layer" in str(report)


def test_a_single_file(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(100, 30), torch.nn.ReLU(), torch.nn.Linear(30, 8))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    dst = tmp_path / "out.safetensors"
    report = quantize_checkpoint(tmp_path / "model.safetensors", dst, "nf4", progress=False)
    assert report.layers_from == "names"
    assert report.files == ("out.safetensors",)
    bnbx.quantize_(model, "nf4", double_quant=False, progress=False)
    check_equal(load_file(dst), model.state_dict())
    model.load_state_dict(load_file(dst))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "out.safetensors"}


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_metadata_of_a_file(tmp_path):
    metadata = {"format": "pt", "modelspec.title": "Größe 🦙", "ss_tags": '{"a": 1}'}
    src, dst = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"proj.weight": torch.randn(4, 64)}, src, metadata)
    report = quantize_checkpoint(src, dst, progress=False)
    assert metadata_of(dst) == metadata
    assert report.metadata_left_out == ()


def test_metadata_of_shards(tmp_path, llama_path):
    """Every file of the result has what those of the source agree on."""
    source = shutil.copytree(llama_path, tmp_path / "src")
    for i, file in enumerate(sorted(source.glob("*.safetensors"))):
        only = {"first": "yes"} if not i else {}
        metadata = {"format": "pt", "author": "me", "hash\n": f"{i}", **only}
        save_file(load_file(file), file, metadata)
    report = quantize_checkpoint(source, tmp_path / "dst", max_shard_size=60_000, progress=False)
    files = list((tmp_path / "dst").glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        assert metadata_of(file) == {"format": "pt", "author": "me", "first": "yes"}
    assert report.metadata_left_out == ("hash\n",)
    assert r"Metadata not kept, because the files of the source differ: 'hash\n'" in str(report)


def test_metadata_of_all_shards_together_are_bounded(tmp_path, llama_path):
    source = shutil.copytree(llama_path, tmp_path / "src")
    for i, file in enumerate(sorted(source.glob("*.safetensors"))):
        save_file(load_file(file), file, {f"{i}": "x" * (MAX_METADATA // 2)})
    with pytest.raises(ValueError, match=f"at most {MAX_METADATA} bytes of __metadata__"):
        quantize_checkpoint(source, tmp_path / "dst", progress=False)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_one_bare_layer(tmp_path, kind):
    """The state_dict of a layer, whose keys have no module's name before them."""
    layer = torch.nn.Linear(64, 8)
    src, dst = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(layer.state_dict(), src)
    quantize_checkpoint(src, dst, kind, progress=False)
    model = torch.nn.Sequential(layer)
    bnbx.quantize_(model, kind, progress=False, **({} if kind == "int8" else NOT_NESTED))
    check_equal(load_file(dst), model[0].state_dict())
    with pytest.raises(ValueError, match="src: expected a checkpoint that is not quantized"):
        quantize_checkpoint(dst, tmp_path / "c.safetensors", kind, progress=False)


def test_one_bare_conv1d(tmp_path):
    layer = transformers.pytorch_utils.Conv1D(8, 64)
    save_file(layer.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="tensor weight: expected .* rows, as its bias"):
        quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", progress=False)


def test_what_is_kept_keeps_its_bytes(tmp_path):
    tensors = {
        "proj.weight": torch.randn(4, 64),
        "embed_tokens.weight": torch.randn(9, 3).to(torch.float8_e4m3fn),
        "bias": torch.randn(7, dtype=torch.float64),
        "ids": torch.arange(5),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty.weight": torch.empty(0, 4),
        "stacked.weight": torch.randn(2, 3, 4),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    quantize_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", progress=False)
    got = load_file(tmp_path / "b.safetensors")
    for name in tensors.keys() - {"proj.weight"}:
        assert got[name].dtype == tensors[name].dtype
        assert got[name].shape == tensors[name].shape
        assert torch.equal(got[name].float(), tensors[name].float())
    assert got["proj.weight"].dtype == torch.uint8


def test_names_when_transformers_is_not_asked(tmp_path, llama_path):
    by_model, by_names = tmp_path / "model", tmp_path / "names"
    quantize_checkpoint(llama_path, by_model, progress=False)
    report = quantize_checkpoint(llama_path, by_names, layers_from="names", progress=False)
    assert report.layers_from == "names"
    check_equal(load(by_names), load(by_model))
    config = json.loads((by_names / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["llm_int8_skip_modules"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "nf5"}, "kind: expected one of"),
        ({"kind": "int8", "double_quant": True}, "double_quant: expected the default"),
        ({"kind": "int8", "blocksize": 128}, "blocksize: expected the default"),
        ({"kind": "int8", "compute_dtype": torch.float16}, "compute_dtype: expected the default"),
        ({"kind": "int8", "storage_dtype": torch.float16}, "storage_dtype: expected the default"),
        ({"kind": "nf4", "threshold": 3.0}, "threshold: expected the default"),
        ({"kind": "int8", "threshold": float("nan")}, "threshold: expected a finite number"),
        ({"kind": "nf4", "blocksize": 100}, "blocksize: expected one of"),
        ({"kind": "nf4", "storage_dtype": torch.int8}, "storage_dtype: expected one of"),
        ({"kind": "nf4", "compute_dtype": torch.int8}, "compute_dtype: expected one of"),
    ],
)
def test_settings_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_settings(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_shard_size": 0}, "max_shard_size: expected a positive number"),
        ({"layers_from": "guess"}, "layers_from: expected one of"),
        ({"skip": [""]}, "skip: expected names"),
        ({"skip": ["*"]}, "at least one linear layer to quantize, got none"),
    ],
)
def test_arguments_that_are_refused(tmp_path, llama_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_checkpoint(llama_path, tmp_path / "dst", progress=False, **arguments)
    assert list(tmp_path.iterdir()) == []
