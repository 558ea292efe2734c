"""Mixtures of experts of transformers: quantized in place, trained, saved and loaded."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

import bnbx

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
#: What else a configuration needs to be small; every class has its experts in 3 dimensions.
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
MODELS = {
    "Mixtral": {},
    "Qwen2Moe": {"shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    "Qwen3Moe": {"decoder_sparse_step": 1},
    "Olmoe": {},
    "GptOss": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": 16,
    },
    "DeepseekV3": DEEPSEEK,
}


def make(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **MODELS[name]})
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).to(dtype).eval()


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def tokens() -> torch.Tensor:
    return torch.randint(1, 128, (2, 9))


def test_logits_are_those_of_the_decoded_model(name):
    model = make(name)
    report = bnbx.quantize_(model, "nf4", skip="lm_head", progress=False)
    experts = [layer for layer in report.layers if len(layer.shape) == 3]
    assert len(experts) == 4  # two matrices in each of two layers
    assert not any("expert" in skipped for skipped in report.skipped if "shared" not in skipped)
    x = tokens()
    with torch.inference_mode():
        logits = model(x).logits
        decoded = bnbx.dequantize_(model)
        torch.testing.assert_close(logits, decoded(x).logits, rtol=1e-4, atol=1e-4)
    assert not any("parametrizations" in key for key in model.state_dict())


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_implementation_of_transformers_is_replaced(name, implementation, monkeypatch):
    model = make(name)
    model.set_experts_implementation(implementation)
    x = tokens()
    bnbx.quantize_(model, "fp4", progress=False)
    with torch.inference_mode():
        expected = bnbx.dequantize_(copy.deepcopy(model))(x).logits
    monkeypatch.setattr(
        "bnbx.nn.parametrize.dequantize_4bit", lambda *_: pytest.fail("it was decoded")
    )
    with torch.inference_mode():
        torch.testing.assert_close(model(x).logits, expected, rtol=1e-4, atol=1e-4)


def test_no_experts_in_16_bit_stay_in_memory(name):
    model = make(name, torch.bfloat16)
    stacks = [weakref.ref(p) for p in model.parameters() if p.dim() == 3]
    before = sum(stack().nbytes for stack in stacks)
    bnbx.quantize_(model, "nf4", progress=False)
    with torch.inference_mode():
        model(tokens())
    gc.collect()
    assert all(stack() is None for stack in stacks)
    codes = [p for key, p in model.named_parameters() if "parametrizations" in key]
    assert sum(p.nbytes for p in codes) == before // 4
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) in {torch.Tensor, torch.nn.Parameter} and t.dim() == 3 and t.is_floating_point()
    }
    assert before // 4 not in held.values()


def test_gradients_reach_an_adapter_through_the_experts(name):
    model = make(name)
    bnbx.quantize_(model, "nf4", progress=False)
    decoded = bnbx.dequantize_(copy.deepcopy(model))
    x = tokens()
    grads = []
    for each in (model, decoded):
        for parameter in each.parameters():
            parameter.requires_grad_(False)
        embeddings = each.get_input_embeddings()(x).detach().requires_grad_()
        each.train()
        each(inputs_embeds=embeddings, labels=x).loss.backward()
        grads.append(embeddings.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)
    assert grads[0].abs().sum() > 0


def test_generating_and_loading_a_state_dict(name):
    saved, loaded = make(name), make(name)
    for parameter in loaded.parameters():
        parameter.data.normal_()
    for model in (saved, loaded):
        bnbx.quantize_(model, "nf4", progress=False)
    loaded.load_state_dict(saved.state_dict())
    x = tokens()
    with torch.inference_mode():
        assert torch.equal(saved(x).logits, loaded(x).logits)
        out = loaded.generate(x, max_new_tokens=4, do_sample=False)
    assert out.shape == (2, 13)
    assert torch.equal(out, saved.generate(x, max_new_tokens=4, do_sample=False))


def test_saving_to_files(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, fresh = make(name), make(name)
    for each in (model, fresh):
        bnbx.quantize_(each, "nf4", skip="lm_head", progress=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path, save_original_format=False)
    entries = safetensors.load_file(tmp_path / "model.safetensors")
    fresh.load_state_dict(entries, strict="lm_head.weight" in entries)
    x = tokens()
    with torch.inference_mode():
        assert torch.equal(fresh(x).logits, model(x).logits)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_after_loading_a_checkpoint_in_which_experts_stayed(name, kind, tmp_path):
    """What `bnbx quantize` and transformers leave, the line in the report quantizes."""
    from bnbx.checkpoint import quantize_checkpoint
    from bnbx.checkpoint.report import QUANTIZE_EXPERTS

    make(name).save_pretrained(tmp_path / "src")
    report = quantize_checkpoint(tmp_path / "src", tmp_path / "dst", kind, progress=False)
    assert report.experts
    model, decoded = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dst", dtype=torch.float32)
        for _ in range(2)
    )
    stacks = {key: p for key, p in decoded.named_parameters() if p.dim() == 3}
    assert len(stacks) == 4
    assert {p.dtype for p in stacks.values()} == {torch.float32}
    assert QUANTIZE_EXPERTS == 'bnbx.quantize_(model, "nf4", skip="lm_head").'
    quantized = bnbx.quantize_(model, "nf4", skip="lm_head", progress=False)
    assert {layer.name for layer in quantized.layers} == set(stacks)
    x = tokens()
    with torch.inference_mode():
        for key, stack in stacks.items():
            owner, _, last = key.rpartition(".")
            stack.copy_(getattr(model.get_submodule(owner), last))
        logits, expected = model(x).logits, decoded(x).logits
    # In int8 an input may fall to the other side of a step.
    assert (logits - expected).norm() < (1e-4 if kind == "nf4" else 1e-2) * expected.norm()


def test_transformers_leaves_experts_in_16_bit(name, tmp_path):
    make(name, torch.bfloat16).save_pretrained(tmp_path)
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings
    )
    experts = {key: p for key, p in model.named_parameters() if ".experts." in key}
    assert {p.dtype for p in experts.values()} == {torch.bfloat16}
    assert "Linear4bit" in {type(module).__name__ for module in model.modules()}
