"""quantize_checkpoint with a search of scales and with a text that the model reads."""

from __future__ import annotations

import copy
import sys

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from bnbx.checkpoint import inspect_checkpoint, quantize_checkpoint
from bnbx.checkpoint.calibration import Calibration
from bnbx.checkpoint.formats import Settings4bit
from bnbx.functional import QuantState, dequantize_4bit

from .models import VOCABULARY, gpt2, llama, save
from .test_convert import by_quantize_, check_equal, load

TOKENS = 300


def add_tokenizer(path):
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)})
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)


@pytest.fixture(scope="module")
def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)


@pytest.fixture(scope="module")
def text(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"w{i}" for i in tokens.tolist()))
    return path


@pytest.fixture
def src(tmp_path):
    torch.manual_seed(0)
    save(llama(attention_bias=True), tmp_path / "src", max_shard_size="60KB")
    add_tokenizer(tmp_path / "src")
    return tmp_path / "src"


def test_scale_search_is_that_of_quantize_(tmp_path, src):
    options = {"scale_search": True, "double_quant": True, "kind": "fp4"}
    quantize_checkpoint(src, tmp_path / "dst", progress=False, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(src, dtype="auto")
    check_equal(load(tmp_path / "dst"), by_quantize_(model, **options))


def test_inspecting_a_search(src):
    found = [inspect_checkpoint(src, scale_search=s, progress=False) for s in (False, True)]
    plain, searched = ({w.name: w.relative_error for w in each.weights} for each in found)
    assert all(searched[name] < 0.95 * plain[name] for name in plain)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"calibration_method": "imatrix", "double_quant": True},
        {"kind": "fp4", "blocksize": 128, "storage_dtype": torch.bfloat16},
    ],
)
def test_calibration_is_that_of_quantize_(tmp_path, src, text, tokens, options):
    """Its windows are those that the model is made for: 128 tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(src, dtype="auto").eval()
    given = {"calibration": text, "calibration_tokens": 280, "progress": False}
    report = quantize_checkpoint(src, tmp_path / "dst", **given, **options)
    windows = [window.unsqueeze(0) for window in tokens[:280].split(128)]
    assert [window.shape[1] for window in windows] == [128, 128, 24]
    expected = by_quantize_(model, calibration=[{"input_ids": w} for w in windows], **options)
    check_equal(load(tmp_path / "dst"), expected)
    assert len(report.quantized) == 14
    assert sorted(p.name for p in (tmp_path / "dst").iterdir()) == sorted(report.files)


@pytest.mark.parametrize("options", [{}, {"calibration_method": "gptq"}])
def test_random_tokens_need_no_text_and_no_tokenizer(tmp_path, src, options):
    for file in src.glob("tokenizer*"):
        file.unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(src, dtype="auto").eval()
    given = {"calibration": "random", **options}
    quantize_checkpoint(src, tmp_path / "dst", progress=False, **given)
    check_equal(load(tmp_path / "dst"), by_quantize_(model, **given))


def test_skipped_layers_stay(tmp_path, src, text):
    given = {"calibration": text, "calibration_tokens": TOKENS, "progress": False}
    quantize_checkpoint(src, tmp_path / "dst", skip=["layers.0"], **given)
    before, after = load(src), load(tmp_path / "dst")
    for name, tensor in before.items():
        if "layers.1" not in name or "proj.weight" not in name:
            assert torch.equal(after[name], tensor)
        else:
            assert after[name].dtype == torch.uint8


def decoded_conv1d(tensors):
    """Return the values of the quantized weights, transposed as layers of this class have them."""
    decoded = {}
    for name in (name.removesuffix(".absmax") for name in tensors if name.endswith(".absmax")):
        prefix = f"{name}."
        entries = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        state = QuantState.from_dict(entries, device=torch.device("cpu"))
        decoded[name] = dequantize_4bit(tensors[name], state).t()
    return decoded


def test_conv1d(tmp_path, text):
    """Its weights are transposed, and the result is better than a search alone gives."""
    torch.manual_seed(0)
    model = save(gpt2(), tmp_path / "src", torch.float32)
    add_tokenizer(tmp_path / "src")
    ways = {"search": {"scale_search": True}}
    ways["gptq"] = {"calibration": text, "calibration_tokens": TOKENS}
    x = torch.randint(0, VOCABULARY, (4, 100), generator=torch.Generator().manual_seed(1))
    errors = {}
    for way, options in ways.items():
        quantize_checkpoint(tmp_path / "src", tmp_path / way, progress=False, **options)
        loaded, decoded = copy.deepcopy(model), decoded_conv1d(load(tmp_path / way))
        assert len(decoded) == 8
        loaded.load_state_dict(decoded, strict=False)
        with torch.no_grad():
            errors[way] = (loaded(x).logits - model(x).logits).square().mean().item()
    assert 0 < errors["gptq"] < 0.8 * errors["search"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "int8"}, "calibration: expected None, because 'int8' has no use for it"),
        ({"layers_from": "names"}, "calibration: expected layers that the model has told, got"),
        ({"calibration_method": "awq"}, "calibration_method: expected one of"),
        ({"calibration_tokens": 301}, "calibration_tokens: expected at most 300, got 301"),
        ({"calibration_tokens": 1}, "calibration_tokens: expected at least 2, got 1"),
        ({"calibration": "no.txt"}, "text: expected a file, got no.txt"),
        (
            {"calibration": "random"},
            "calibration_tokens: expected the default, because 'random' is of fixed length, got",
        ),
        (
            {"calibration": None, "calibration_tokens": 7},
            "calibration_tokens: expected the default, because there is no calibration, got 7",
        ),
        (
            {"calibration": None, "calibration_method": "imatrix"},
            "calibration_method: expected the default, because there is no calibration, got im",
        ),
    ],
)
def test_refused(tmp_path, src, text, options, message):
    given = {"calibration": text, "calibration_tokens": TOKENS, "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        quantize_checkpoint(src, tmp_path / "dst", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        quantize_checkpoint(
            tmp_path / "src",
            tmp_path / "dst",
            calibration=text,
            calibration_tokens=TOKENS,
            progress=False,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_without_a_tokenizer(tmp_path, src, text):
    for file in src.glob("tokenizer*"):
        file.unlink()
    refused(tmp_path, text, "expected a tokenizer that transformers reads, got none: ")


def change(src, **changes):
    """Change tensors of a checkpoint, or remove them."""
    tensors = load(src)
    for file in src.glob("model*"):
        file.unlink()
    tensors = {name: changes.get(name, tensor) for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, src / "model.safetensors", metadata={"format": "pt"})


def test_an_incomplete_checkpoint(tmp_path, src, text):
    change(src, **{"model.layers.1.mlp.up_proj.weight": None})
    message = r"src: expected all tensors of the model, got none for \['model.layers.1.mlp.up_proj"
    refused(tmp_path, text, message)


def test_damaged_and_uneven_weights(tmp_path, src, text):
    name = "model.layers.1.mlp.up_proj.weight"
    good = load(src)[name]
    bad = good.clone()
    bad[3, 4] = float("nan")
    change(src, **{name: bad})
    refused(tmp_path, text, f"tensor '?{name}'?: expected finite values")
    change(src, **{name: good.float()})
    refused(tmp_path, text, "src: expected weights of one dtype for calibration, got")


def test_a_model_that_wants_more_than_tokens(tmp_path, text):
    config = transformers.T5Config(
        d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4, vocab_size=VOCABULARY
    )
    save(transformers.T5ForConditionalGeneration(config), tmp_path / "src")
    add_tokenizer(tmp_path / "src")
    refused(tmp_path, text, "src: expected a model that reads tokens and nothing else, got T5For")


def test_transformers_is_missing(tmp_path, src, text, monkeypatch):
    monkeypatch.setattr("bnbx.checkpoint.optional.available", lambda _: False)
    with pytest.raises(ImportError, match="needs transformers, which is not installed"):
        quantize_checkpoint(src, tmp_path / "dst", layers_from="model", calibration=text)


def test_a_bar_on_a_terminal_only(src, text, monkeypatch, tmp_path, capsys):
    given = {"calibration": text, "calibration_tokens": TOKENS}
    quantize_checkpoint(src, tmp_path / "a", progress=True, **given)
    assert "quantizing to nf4" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    quantize_checkpoint(src, tmp_path / "b", progress=True, **given)
    assert "quantizing to nf4" in capsys.readouterr().err


def test_settings_of_a_calibration(text):
    with pytest.raises(ValueError, match="calibration_tokens: expected at least 2"):
        Calibration(text, Settings4bit("nf4"), "gptq", 0)
