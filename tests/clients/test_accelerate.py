"""accelerate: load_and_quantize_model, offloading, device maps, 8-bit optimizers."""

from __future__ import annotations

from typing import Any

import accelerate
import pytest
import safetensors
import torch
import transformers
from accelerate.utils import BnbQuantizationConfig, load_and_quantize_model
from tests.clients import models

#: accelerate refuses the word "cpu" as the place of quantized layers, and takes this.
CPU = torch.device("cpu")
#: A device map that names each part of a small Llama.
PARTS = dict.fromkeys(
    (
        *("model.embed_tokens", "model.layers.0", "model.layers.1"),
        *("model.norm", "model.rotary_emb", "lm_head"),
    ),
    "cpu",
)
CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4 nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_load_and_quantize_model(architecture, name, checkpoint, bnb, tmp_path):
    exact = models.load(checkpoint(architecture))
    weights = tmp_path / "pytorch_model.bin"
    torch.save(exact.state_dict(), weights)
    with accelerate.init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(models.CONFIGS[architecture])
    compute = {"bnb_4bit_compute_dtype": torch.float32} if "4" in name else {}
    config = BnbQuantizationConfig(**CONFIGS[name], **compute, torch_dtype=torch.float32)
    model = load_and_quantize_model(
        model, config, weights_location=str(weights), device_map={"": CPU}
    ).eval()
    kind = bnb.nn.Linear4bit if "4" in name else bnb.nn.Linear8bitLt
    assert type(model.model.layers[0].self_attn.q_proj) is kind
    assert type(model.lm_head) is torch.nn.Linear
    limit = 0.6 if "4" in name else 0.2
    assert models.difference(models.outputs(model), models.outputs(exact)) < limit
    assert model.generate(models.tokens(), max_new_tokens=3, do_sample=False).shape == (2, 15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it asks for nothing more")
@pytest.mark.parametrize(
    ("name", "place", "kind", "message"),
    [
        ("nf4", "cpu", ValueError, "Some modules are dispatched on the CPU"),
        ("int8", "cpu", RuntimeError, "accelerator device when none is available"),
        ("nf4", CPU, safetensors.SafetensorError, "device .* is invalid"),
        ("int8", CPU, safetensors.SafetensorError, "device .* is invalid"),
    ],
)
def test_what_accelerate_refuses(name, place, kind, message, checkpoint):
    """If this ends, the row in docs/compatibility.md is out of date."""
    with accelerate.init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(models.CONFIGS["llama"])
    weights = str(checkpoint("llama") / "model.safetensors")
    config = BnbQuantizationConfig(**CONFIGS[name], torch_dtype=torch.float32)
    with pytest.raises(kind, match=message):
        load_and_quantize_model(model, config, weights_location=weights, device_map={"": place})


@pytest.mark.parametrize("quantization", ["nf4", "nf4 nested", "fp4 in bfloat16", "int8"])
def test_a_device_map_of_many_parts(quantization, checkpoint):
    whole = models.outputs(models.load(checkpoint("llama"), quantization))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint("llama"),
        device_map=PARTS,
        dtype=torch.float32,
        quantization_config=models.quantization(quantization),
    )
    assert torch.equal(models.outputs(model), whole)


@pytest.mark.parametrize("quantization", ["nf4", "nf4 nested", "fp4 in bfloat16", "int8"])
def test_cpu_offload(quantization, checkpoint):
    """Weights wait elsewhere and come in for each forward pass."""
    model = models.load(checkpoint("llama"), quantization)
    whole = models.outputs(model)
    accelerate.cpu_offload(model, execution_device=CPU)
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "meta"
    for _ in range(2):
        with torch.no_grad():
            logits = model(input_ids=models.tokens()).logits
        assert torch.equal(logits, whole)


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_modules_offloaded_to_disk_stay_in_float(name, checkpoint, tmp_path, bnb):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint("llama"),
        device_map={**PARTS, "model.layers.1": "disk"},
        dtype=torch.float32,
        offload_folder=str(tmp_path),
        quantization_config=models.quantization(name, llm_int8_enable_fp32_cpu_offload=True),
    )
    # transformers leaves everything unquantized that its device map puts on the CPU or a disk.
    assert not any(
        isinstance(layer, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)) for layer in model.modules()
    )
    exact = models.load(checkpoint("llama"))
    assert torch.equal(models.outputs(model), models.outputs(exact))


@pytest.mark.parametrize("name", ["Adam8bit", "PagedAdamW8bit", "Lion8bit", "AdEMAMix8bit"])
def test_prepare_save_and_load_an_8_bit_optimizer(name, checkpoint, bnb, tmp_path):
    def prepared() -> tuple[accelerate.Accelerator, Any, Any]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = models.load(checkpoint("llama")).train()
        optimizer = getattr(bnb.optim, name)(model.parameters(), lr=1e-3)
        return accelerator, *accelerator.prepare(model, optimizer)

    def train(accelerator: Any, model: Any, optimizer: Any) -> list[float]:
        losses = []
        for _ in range(4):
            with accelerator.accumulate(model):
                loss = model(input_ids=models.tokens(), labels=models.tokens()).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses

    first = prepared()
    losses = train(*first)
    assert losses[-1] < losses[0]
    first[0].save_state(str(tmp_path))
    again = prepared()
    again[0].load_state(str(tmp_path))
    assert train(*again) == train(*first)


def test_what_accelerate_asks(bnb):
    assert accelerate.utils.is_bnb_available()
    assert accelerate.utils.is_4bit_bnb_available()
    assert accelerate.utils.is_8bit_bnb_available()
    assert accelerate.utils.imports.is_bitsandbytes_multi_backend_available()
    assert "cpu" in bnb.supported_torch_devices
