"""find_weights: which tensors are the weights of linear layers."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bnbx.checkpoint import Checkpoint, find_weights, layers
from bnbx.checkpoint.layers import EXPERTS
from bnbx.checkpoint.skeleton import Skeleton

from .models import VOCABULARY, gpt2, llama, mixtral, save

SMALL = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCABULARY}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 4}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL))


def t5():
    settings = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**settings, vocab_size=VOCABULARY, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


MODELS = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": gpt2,
    "bert": bert,
    "t5": t5,
    "mixtral": mixtral,
}


def on_load(model):
    """Return the layers that transformers quantizes when it loads an unquantized checkpoint."""
    quantizer = transformers.quantizers.auto.AutoHfQuantizer.from_config(
        transformers.BitsAndBytesConfig(load_in_8bit=True), pre_quantized=False
    )
    left = quantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    should = transformers.quantizers.quantizers_utils.should_convert_module
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    modules = model.named_modules()
    return {name for name, module in modules if isinstance(module, kinds) and should(name, left)}


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_that_transformers_quantizes(tmp_path, name):
    model = save(MODELS[name](), tmp_path / "model")
    with Checkpoint(tmp_path / "model") as checkpoint:
        weights = find_weights(checkpoint)
        skeleton = Skeleton(checkpoint)
        found = {skeleton.layer_of(tensor).name for tensor in weights.transposed}
        assert found == on_load(model)
        assert weights.kept.keys() | weights.transposed.keys() == checkpoint.tensors.keys()
        assert weights.kept.keys().isdisjoint(weights.transposed)
        assert set(weights.transposed.values()) == {name == "gpt2"}
    every = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert every - found <= set(weights.skip_modules)
    assert found.isdisjoint(weights.skip_modules)


def test_experts_stay(tmp_path):
    save(mixtral(), tmp_path / "model")
    for source in ("model", "names"):
        with Checkpoint(tmp_path / "model") as checkpoint:
            weights = find_weights(checkpoint, source=source)
            experts = [name for name in checkpoint.tensors if "experts" in name]
        assert len(experts) == 24
        assert {name for name, reason in weights.kept.items() if reason == EXPERTS} == set(experts)
        assert all("self_attn" in name for name in weights.transposed)


def test_a_base_model_without_its_prefix(tmp_path):
    """Old checkpoints hold the names of the model without its head."""
    save(gpt2(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
    save_file(tensors, file)
    with Checkpoint(tmp_path / "model") as checkpoint:
        weights = find_weights(checkpoint)
    assert len(weights.transposed) == 8
    assert "h.0.attn.c_attn.weight" in weights.transposed
    assert weights.skip_modules == ["lm_head"]


def test_names(tmp_path):
    linear = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj", "encoder.dense"]
    others = {
        "model.embed_tokens": "'embed_tokens'",
        "transformer.wte": "'wte'",
        "lm_head": "'lm_head'",
        "model.layers.0.input_layernorm": "'input_layernorm'",
        "model.layers.0.mlp.gate": "'gate'",
        "position_embeddings": "'position_embeddings'",
        "score": "'score'",
    }
    tensors = {f"{name}.weight": torch.ones(4, 4) for name in (*linear, *others)}
    experts = {
        "model.layers.0.mlp.experts.3.w1.weight": torch.ones(4, 4),
        "model.layers.0.mlp.experts.down_proj": torch.ones(2, 4, 4),
    }
    tensors |= {
        **experts,
        "model.layers.0.mlp.experts.down_proj_bias": torch.ones(2, 4),
        "conv.weight": torch.ones(2, 2, 2),
        "table": torch.ones(3, 3),
        "a.bias": torch.ones(3),
    }
    tensors["double.weight"] = torch.ones(4, 4, dtype=torch.float64)
    save_file(tensors, tmp_path / "a.safetensors")
    with Checkpoint(tmp_path / "a.safetensors") as checkpoint:
        weights = find_weights(checkpoint)
    assert set(weights.transposed) == {f"{name}.weight" for name in linear}
    for name, part in others.items():
        assert weights.kept[f"{name}.weight"] == f"{part} in its name"
    assert {name for name, reason in weights.kept.items() if reason == EXPERTS} == set(experts)
    for name in ("conv.weight", "table", "a.bias"):
        assert "by its name and shape" in weights.kept[name]
    assert weights.kept["double.weight"] == "float64"
    assert set(weights.skip_modules) == {*others, "double", "model.layers.0.mlp.experts.3.w1"}


def test_without_transformers_names_decide(monkeypatch, llama_path):
    monkeypatch.setattr(layers, "available", lambda _: False)
    with Checkpoint(llama_path) as checkpoint:
        assert find_weights(checkpoint).source == "names"


def test_two_weights_of_one_layer(tmp_path):
    save(gpt2(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = "transformer.h.0.attn.c_attn.weight"
    tensors[name.removeprefix("transformer.")] = tensors[name].clone()
    save_file(tensors, file)
    with (
        Checkpoint(tmp_path / "model") as checkpoint,
        pytest.raises(ValueError, match="one weight"),
    ):
        find_weights(checkpoint)


def test_a_list_that_matches_too_much(tmp_path):
    """transformers compares the ends of names with the entries of the list."""
    torch.manual_seed(0)
    save(bert(), tmp_path / "model")
    with Checkpoint(tmp_path / "model") as checkpoint:
        skeleton = Skeleton(checkpoint)
        every = set(skeleton._linear)
        assert set(skeleton.others(every)) == set()
        skeleton._linear["dense"] = next(iter(skeleton._linear.values()))
        with pytest.raises(ValueError, match="skip: expected a list that does not match .*dense"):
            skeleton.others(every)
