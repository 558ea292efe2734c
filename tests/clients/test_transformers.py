"""transformers: BitsAndBytesConfig through from_pretrained, generate, save_pretrained, reload."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.clients import models

import bnbx

CAUSAL = ("llama", "gpt2", "mixtral", "qwen3_moe", "gpt_oss")
#: How far a quantized model's outputs are from the model's at most: 4 bits, 8 bits. That much
#: because among these few experts a token is now and then sent to another one.
TOLERANCES = {4: 0.6, 8: 0.2}


def bits(name: str) -> int:
    return 4 if "load_in_4bit" in models.QUANTIZATIONS[name] else 8


def quantized_layers(model: Any, bnb: Any) -> dict[str, Any]:
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


def same_states(a: Any, b: Any) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(models.same_bits(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", models.QUANTIZATIONS)
@pytest.mark.parametrize("architecture", [*CAUSAL, "minilm"])
def test_load_generate_save_and_reload(architecture, name, checkpoint, bnb, tmp_path):
    folder = checkpoint(architecture)
    exact = models.load(folder)
    model = models.load(folder, name)

    layers = quantized_layers(model, bnb)
    kind = bnb.nn.Linear4bit if bits(name) == 4 else bnb.nn.Linear8bitLt
    assert layers
    assert all(type(layer) is kind for layer in layers.values())
    assert "lm_head" not in layers
    assert model.get_memory_footprint() < exact.get_memory_footprint()
    assert model.is_quantized
    assert model.hf_quantizer.is_serializable()
    assert model.hf_quantizer.is_trainable
    result = models.outputs(model)
    assert models.difference(result, models.outputs(exact)) < TOLERANCES[bits(name)]
    if architecture != "minilm":
        text = model.generate(models.tokens(), max_new_tokens=5, do_sample=False)
        assert text.shape == (2, 17)

    # After forward passes, which must not have changed what is saved.
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "bitsandbytes"
    again = models.load(tmp_path)
    assert same_states(again, model)
    assert torch.equal(models.outputs(again), result)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", models.QUANTIZATIONS)
def test_models_in_16_bit(name, dtype, checkpoint, tmp_path):
    """Everything but the quantized weights is in 16 bit, as most people load a model."""
    model = models.load(checkpoint("llama"), name, dtype=dtype, bnb_4bit_compute_dtype=dtype)
    exact = models.outputs(models.load(checkpoint("llama")))
    result = models.outputs(model)
    assert result.dtype == dtype
    assert models.difference(result.float(), exact) < TOLERANCES[bits(name)]
    assert model.generate(models.tokens(), max_new_tokens=3, do_sample=False).shape == (2, 15)
    model.save_pretrained(tmp_path)
    assert torch.equal(models.outputs(models.load(tmp_path, dtype=dtype)), result)


@pytest.mark.parametrize("name", models.QUANTIZATIONS)
@pytest.mark.parametrize("architecture", ["llama", "minilm"])
def test_dequantize(architecture, name, checkpoint, bnb):
    model = models.load(checkpoint(architecture), name)
    exact = models.load(checkpoint(architecture)).state_dict()
    layers = quantized_layers(model, bnb)
    result = models.outputs(model)  # a forward pass first: it must leave the weights as they are
    model = model.dequantize()
    assert not quantized_layers(model, bnb)
    for layer in layers:
        weight, original = model.get_submodule(layer).weight, exact[f"{layer}.weight"]
        assert weight.dtype == torch.float32
        # Half the widest gap between two values of NF4 is 0.152 times the largest of a block, of
        # FP4 0.167; nested scales add their own error.
        step = 0.18 if bits(name) == 4 else 0.5 / 127
        assert (weight - original).abs().max() <= step * original.abs().max()
    # With 8 bits the inputs were quantized too.
    assert models.difference(models.outputs(model), result) < (1e-5 if bits(name) == 4 else 0.1)


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_skipped_modules_stay_as_they_are(name, checkpoint, bnb):
    skip = ["lm_head", "k_proj", "model.layers.0.mlp"]
    model = models.load(checkpoint("llama"), name, llm_int8_skip_modules=skip)
    layers = quantized_layers(model, bnb)
    assert "model.layers.1.mlp.up_proj" in layers
    assert "model.layers.0.self_attn.q_proj" in layers
    assert not any("k_proj" in layer or "layers.0.mlp" in layer for layer in layers)


def test_threshold_reaches_the_layers(checkpoint, bnb):
    model = models.load(checkpoint("llama"), "int8 with outliers")
    assert {layer.state.threshold for layer in quantized_layers(model, bnb).values()} == {3.0}
    plain = models.load(checkpoint("llama"), "int8")
    exact = models.outputs(models.load(checkpoint("llama")))
    # Large activations in 16 bit: nearer to the model that is not quantized, and not the same.
    errors = [models.difference(models.outputs(each), exact) for each in (model, plain)]
    assert errors[0] < errors[1]


def test_footprint(checkpoint):
    """Two layers of (64*64*2 + 64*32*2 + 3*64*128) weights go from 4 bytes to 1 and to a half."""
    weights = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    exact = models.load(checkpoint("llama")).get_memory_footprint()
    assert exact - models.load(checkpoint("llama"), "int8").get_memory_footprint() == 3 * weights
    assert exact - models.load(checkpoint("llama"), "nf4").get_memory_footprint() == 3.5 * weights


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_of_three_dimensions_stay(architecture, checkpoint):
    """transformers quantizes linear layers alone, and the experts are parameters."""
    exact = models.load(checkpoint(architecture)).state_dict()
    state = models.load(checkpoint(architecture), "nf4").state_dict()
    experts = [key for key, value in exact.items() if value.dim() == 3]
    assert experts
    assert all(torch.equal(state[key], exact[key]) for key in experts)


@pytest.mark.parametrize("name", ["nf4 nested", "int8 with outliers"])
def test_a_real_language_model(name, checkpoint, tmp_path):
    from transformers import AutoTokenizer

    folder = checkpoint("smollm2")
    model = models.load(folder, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    result = models.outputs(model)
    model.save_pretrained(tmp_path)
    del model
    assert torch.equal(models.outputs(models.load(tmp_path)), result)


#: The values of an MXFP4 code.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture
def mxfp4(checkpoint, tmp_path):
    """A gpt-oss whose experts are stored in MXFP4, and what one of them is in floating point."""
    folder = tmp_path / "mxfp4"
    shutil.copytree(checkpoint("gpt_oss"), folder)
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(8)
    values = {}
    for key in [key for key in state if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = state.pop(key).shape
        shape = (experts, rows, columns // 32)
        blocks = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 126, shape, dtype=torch.uint8, generator=generator)
        state[f"{key}_blocks"], state[f"{key}_scales"] = blocks, scales
        codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
        decoded = E2M1[codes] * 2.0 ** (scales.float() - 127)[..., None]
        values[key] = decoded.flatten(-2).transpose(1, 2)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, values


def test_experts_in_mxfp4_stay(mxfp4, bnb):
    """transformers reads one quantization at a time; bnbx adds its own to what is left."""
    folder, values = mxfp4
    with pytest.raises(ValueError, match="quantized with Mxfp4Config"):
        models.load(folder, "nf4")
    model = models.load(folder)
    exact = models.outputs(model)
    bnbx.quantize_(model, skip=lambda name, _: "mlp" in name or name == "lm_head", progress=False)
    assert len(quantized_layers(model, bnb)) == 8
    for key, value in values.items():
        assert torch.equal(model.get_parameter(key), value)
    assert 0 < models.difference(models.outputs(model), exact) < TOLERANCES[4]


@pytest.mark.parametrize("name", ["nf4 nested", "fp4 in bfloat16", "int8"])
def test_a_loaded_model_can_be_moved(name, checkpoint):
    """transformers refuses that in 8 bit for a bitsandbytes before 0.48."""
    model = models.load(checkpoint("llama"), name)
    result = models.outputs(model)
    assert torch.equal(models.outputs(model.to("cpu")), result)


def test_what_transformers_asks(bnb):
    from transformers.integrations.bitsandbytes import validate_bnb_backend_availability

    assert transformers.utils.is_bitsandbytes_available()
    assert transformers.utils.is_bitsandbytes_available("0.48")
    assert validate_bnb_backend_availability(raise_exception=True)
    # trl asks whether somebody has imported it.
    assert sys.modules["bitsandbytes"] is bnb
