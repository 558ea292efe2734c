"""Checkpoints of bnbx quantize in transformers with the real bitsandbytes."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.checkpoint.models import VOCABULARY, gpt2, llama, save

from bnbx.checkpoint import inspect_checkpoint, quantize_checkpoint

logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it says at each call what it casts

FORMATS = {
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "nf4 nested": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4 in bfloat16": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "bfloat16"},
    "int8": {"load_in_8bit": True},
}
OURS = {
    "nf4": {},
    "nf4 nested": {"double_quant": True},
    "fp4 in bfloat16": {"kind": "fp4", "storage_dtype": torch.bfloat16},
    "int8": {"kind": "int8"},
}
#: Sizes that bitsandbytes' layout for inference on CPUs can be made of.
MODELS = {
    "llama": lambda: llama(intermediate_size=128),
    "tied": lambda: llama(intermediate_size=128, tie_word_embeddings=True),
    "gpt2": gpt2,
}


def config(name):
    if name == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16", **FORMATS[name]
    )


def logits(model):
    tokens = torch.randint(0, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(tokens).logits


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_loads_as_quantized(tmp_path, name, form):
    """It is the model that transformers quantizes when it loads the source."""
    source, ours, theirs = tmp_path / "src", tmp_path / "ours", tmp_path / "theirs"
    exact = logits(save(MODELS[name](), source, max_shard_size="50KB"))
    quantize_checkpoint(source, ours, progress=False, max_shard_size=30_000, **OURS[form])
    load = transformers.AutoModelForCausalLM.from_pretrained
    on_load = load(source, quantization_config=config(form))
    on_load.save_pretrained(theirs)  # before it runs, which changes the layout of its weights
    loaded, info = load(ours, output_loading_info=True)
    assert not any(info.values()), info
    expected = on_load.state_dict()
    got = loaded.state_dict()
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert got[key].dtype == tensor.dtype, key
        if "nested" in form and ("absmax" in key or "quant_state" in key):
            continue  # the offset is a sum, which may be added up in another order
        assert torch.equal(got[key].view(torch.uint8), tensor.view(torch.uint8)), key
    tolerance = 0.01 * exact.std().item() if "nested" in form else 0.0
    assert (logits(loaded) - logits(on_load)).abs().max() <= tolerance
    assert (logits(loaded) - exact).std() < 0.2 * exact.std()
    written = {key: t for file in ours.glob("*.safetensors") for key, t in load_file(file).items()}
    assert written.keys() == load_file(theirs / "model.safetensors").keys()
    found = inspect_checkpoint(theirs, reference=source, progress=False)
    assert len(found.weights) == sum(key.endswith(("weight.absmax", ".SCB")) for key in written)
    assert found.weights[0].relative_error < 0.2
