"""peft: adapters on 4-bit and 8-bit models, trained, saved, loaded, merged and unmerged."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from tests.clients import models

QUANTIZATIONS = ("nf4", "nf4 nested", "fp4 in bfloat16", "int8", "int8 with outliers")
TARGETS = ["q_proj", "v_proj", "down_proj"]
ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS, use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(
        target_modules=TARGETS, oft_block_size=8, r=0, use_cayley_neumann=True
    ),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, total_step=10, init_r=4),
    "vera": lambda: peft.VeraConfig(target_modules=["o_proj"], r=4),
    "randlora": lambda: peft.RandLoraConfig(target_modules=["o_proj"], r=4),
    "hira": lambda: peft.HiraConfig(target_modules=TARGETS, r=4),
    "road": lambda: peft.RoadConfig(target_modules=TARGETS, group_size=32),
}


def prepared(checkpoint: Any, quantization: str, *, checkpointing: bool = False) -> Any:
    model = models.load(checkpoint("llama"), quantization)
    return peft.prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def adapted(model: Any, adapter: str) -> Any:
    torch.manual_seed(3)
    return peft.get_peft_model(model, ADAPTERS[adapter]())


def loss_of(model: Any) -> torch.Tensor:
    return model(input_ids=models.tokens(), labels=models.tokens()).loss


def train(model: Any, steps: int = 4, lr: float = 5e-3) -> list[float]:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train()
    loss_of(model).backward()
    model.eval()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_train_save_and_load(adapter, quantization, checkpoint, tmp_path):
    model = adapted(prepared(checkpoint, quantization), adapter)
    base = {k: v.clone() for k, v in model.base_model.state_dict().items() if "base_layer" in k}
    before = models.outputs(model)
    losses = train(model)
    assert losses[-1] < losses[0]
    trained = models.outputs(model)
    assert models.difference(trained, before) > 1e-3
    after = model.base_model.state_dict()
    assert all(models.same_bits(after[key], value) for key, value in base.items())

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(prepared(checkpoint, quantization), tmp_path).eval()
    assert torch.equal(models.outputs(again), trained)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["nf4 nested", "fp4 in bfloat16"])
def test_gradients_are_those_of_the_dequantized_model(quantization, checkpointing, checkpoint):
    """Also after forward passes in eval, which must not change the weight."""
    model = prepared(checkpoint, quantization, checkpointing=checkpointing)
    exact = models.load(checkpoint("llama"), quantization).dequantize()
    model, exact = adapted(model, "lora"), adapted(exact.requires_grad_(False), "lora")
    for each in (model, exact):
        for name, parameter in each.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.05, generator=torch.Generator())
    models.outputs(model)
    mine, theirs = gradients(model), gradients(exact)
    assert list(mine) == list(theirs)
    assert len(mine) == 12
    assert all(models.difference(mine[name], theirs[name]) < 1e-4 for name in theirs)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("adapter", ["lora", "dora", "oft"])
def test_merge(adapter, quantization, checkpoint, bnb):
    """Eval, then train, then merge, unmerge and merge for good."""
    model = adapted(prepared(checkpoint, quantization), adapter)
    start = models.outputs(model)
    train(model, steps=8, lr=0.02)
    trained = models.outputs(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    kind = type(layer)
    # What rounding the weight anew may change; training changed more.
    limit = 0.1 if "int8" in quantization else 0.45
    assert models.difference(start, trained) > limit

    model.merge_adapter()
    merged = models.outputs(model)
    assert models.difference(merged, trained) < limit
    model.unmerge_adapter()
    assert models.difference(models.outputs(model), trained) < limit

    model = model.merge_and_unload()
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer) is kind
    assert isinstance(layer.weight, bnb.nn.Params4bit if "4" in quantization else bnb.nn.Int8Params)
    assert models.difference(models.outputs(model), trained) < limit


@pytest.mark.parametrize("quantization", ["nf4 nested", "int8"])
def test_the_merged_weight_is_the_sum(quantization, checkpoint, bnb):
    """What a merge stores is what rounding weight + adapter, computed here, stores."""
    model = adapted(prepared(checkpoint, quantization), "lora")
    models.outputs(model)
    train(model)
    module = model.base_model.model.model.layers[1].mlp.down_proj
    weight = module.base_layer.weight
    if quantization == "int8":
        exact = weight.data.float() * weight.SCB[:, None] / 127
    else:
        exact = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    exact = exact + module.get_delta_weight("default").detach()
    merged = model.merge_and_unload().model.layers[1].mlp.down_proj.weight
    if quantization == "int8":
        scale = exact.abs().amax(1)
        assert torch.equal(merged.data, (exact * (127 / scale)[:, None]).round().to(torch.int8))
    else:
        packed, _ = bnb.functional.quantize_4bit(exact, quant_type="nf4", compress_statistics=True)
        assert torch.equal(merged.data, packed)


@pytest.mark.parametrize("quantization", ["nf4 nested", "int8"])
def test_disabled_adapters_leave_the_base(quantization, checkpoint):
    base = models.outputs(prepared(checkpoint, quantization))
    model = adapted(prepared(checkpoint, quantization), "lora")
    train(model)
    with model.disable_adapter():
        assert torch.equal(models.outputs(model), base)
    assert torch.equal(models.outputs(copy.deepcopy(model)), models.outputs(model))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_all_linear_layers_are_found(quantization, checkpoint):
    model = models.load(checkpoint("llama"), quantization)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    adapted_layers = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
    assert len(adapted_layers) == 2 * 7
    assert not any("lm_head" in name for name in adapted_layers)


@pytest.mark.parametrize("name", ["Adam8bit", "AdamW8bit", "PagedAdam8bit", "PagedAdamW8bit"])
def test_lora_plus(name, checkpoint, bnb):
    """peft asks for the optimizer's class name, to keep embeddings at 32 bit."""
    from peft.optimizers import create_loraplus_optimizer

    model = models.load(checkpoint("llama"), "nf4")
    config = peft.LoraConfig(r=64, target_modules=["down_proj", "embed_tokens"])
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(model), config).train()
    optimizer = create_loraplus_optimizer(
        model, getattr(bnb.optim, name), lr=1e-3, loraplus_lr_ratio=16
    )
    assert {round(group["lr"], 6) for group in optimizer.param_groups} >= {1e-3, 16e-3}
    first = loss_of(model)
    first.backward()
    optimizer.step()
    assert loss_of(model) < first
    states = {
        name: optimizer.state[p]["state1"].dtype
        for name, p in model.named_parameters()
        if p in optimizer.state
    }
    assert len(states) == 6
    weights = [dtype for name, dtype in states.items() if "down_proj.lora_A" in name]
    assert weights == [torch.uint8] * 2


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_merging_ia3_is_not_implemented_in_peft(quantization, checkpoint):
    """If this ends, the row in docs/compatibility.md is out of date."""
    model = adapted(prepared(checkpoint, quantization), "ia3")
    with pytest.raises(NotImplementedError):
        model.merge_adapter()
    with pytest.raises(ValueError, match="Cannot merge ia3 layers when the model is loaded in"):
        model.merge_and_unload()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it works")
def test_loftq_asks_for_a_gpu(checkpoint):
    """If this ends, the row in docs/compatibility.md is out of date."""
    folder = checkpoint("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(models.load(folder, "nf4"), config)
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        peft.replace_lora_weights_loftq(model, str(folder / "model.safetensors"))


def test_what_peft_asks():
    assert peft.import_utils.is_bnb_available()
    assert peft.import_utils.is_bnb_4bit_available()
