"""diffusers: BitsAndBytesConfig on a small Flux transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer
from tests.clients import models

if TYPE_CHECKING:
    from pathlib import Path

CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4 nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from diffusers its refusal to quantize without a GPU; all else is as it is."""
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda *_, **__: {"": "cpu"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(6)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    path = tmp_path_factory.mktemp("flux")
    model.save_pretrained(path)
    return path


def load(path: Path, name: str | None = None) -> Any:
    settings: dict[str, Any] = {}
    if name is not None:
        compute = {"bnb_4bit_compute_dtype": torch.float32} if "4" in name else {}
        config = diffusers.BitsAndBytesConfig(**CONFIGS[name], **compute)
        settings["quantization_config"] = config
    return diffusers.FluxTransformer2DModel.from_pretrained(
        path, torch_dtype=torch.float32, **settings
    )


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return model(
        hidden_states=torch.randn(1, 16, 4, generator=generator),
        encoder_hidden_states=torch.randn(1, 8, 32, generator=generator),
        pooled_projections=torch.randn(1, 32, generator=generator),
        timestep=torch.tensor([1.0]),
        img_ids=torch.zeros(16, 3),
        txt_ids=torch.zeros(8, 3),
    ).sample


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_itself_refuses_a_cpu(name, folder, monkeypatch):
    """If this ends, the fixture ``_on_the_cpu`` can go."""
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="No GPU found"):
        load(folder, name)


def test_what_diffusers_asks():
    assert diffusers.utils.is_bitsandbytes_available()
    assert diffusers.utils.is_bitsandbytes_version(">=", "0.43.3")


@pytest.mark.parametrize("name", CONFIGS)
def test_load_save_and_reload(name, folder, tmp_path, bnb):
    exact, model = load(folder), load(folder, name)
    kind = bnb.nn.Linear4bit if "4" in name else bnb.nn.Linear8bitLt
    assert type(model.transformer_blocks[0].attn.to_q) is kind
    assert model.get_memory_footprint() < exact.get_memory_footprint()
    result = output(model)
    assert 0 < models.difference(result, output(exact)) < (0.3 if "4" in name else 0.05)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(load(tmp_path)), result)


@pytest.mark.parametrize("name", CONFIGS)
def test_dequantize(name, folder, monkeypatch):
    model = load(folder, name)
    result = output(model)
    # It would move the model to a GPU for that, and back.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    model = model.dequantize()
    assert type(model.transformer_blocks[0].attn.to_q) is torch.nn.Linear
    assert models.difference(output(model), result) < (1e-5 if "4" in name else 0.05)
