"""Lightning Fabric's BitsandbytesPrecision."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.plugins import BitsandbytesPrecision
from tests.clients import models

MODES = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training")


def network() -> torch.nn.Sequential:
    torch.manual_seed(4)
    layers = (torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 16))
    return torch.nn.Sequential(*layers)


def fabric(mode: str, **settings: Any) -> lightning.Fabric:
    """Fabric with the plugin, which its constructor takes on CUDA devices only."""
    made = lightning.Fabric(accelerator="cpu", devices=1)
    dtype = torch.float16 if mode.startswith("int8") else torch.float32
    plugin = BitsandbytesPrecision(mode, dtype, **settings)
    made._precision = made.strategy.precision = plugin
    made.launch()
    return made


def test_fabric_itself_refuses_a_cpu():
    """If this ends, ``fabric`` can be made as its users make it."""
    with pytest.raises(RuntimeError, match="only supported on CUDA"):
        lightning.Fabric(accelerator="cpu", plugins=BitsandbytesPrecision("nf4"))


@pytest.mark.parametrize("mode", MODES)
def test_setup_quantizes(mode, bnb):
    exact = network()
    model = fabric(mode).setup_module(network())
    assert isinstance(model.module[0], bnb.nn.Linear8bitLt if "int8" in mode else bnb.nn.Linear4bit)
    codes = {"int8": torch.int8, "int8-training": torch.float32}.get(mode, torch.uint8)
    assert model.module[0].weight.dtype == codes
    if "int8" not in mode:
        state = model.module[0].weight.quant_state
        assert (state.quant_type, state.nested) == (mode[:3], mode.endswith("dq"))
    x = torch.randn(8, 64)
    error = models.difference(model(x).float(), exact(x))
    assert 0 < error < (0.05 if "int8" in mode else 0.2)


@pytest.mark.parametrize("mode", ["nf4", "int8"])
def test_ignored_modules(mode):
    model = fabric(mode, ignore_modules={"2"}).setup_module(network())
    assert type(model.module[2]) is torch.nn.Linear
    assert type(model.module[0]) is not torch.nn.Linear


@pytest.mark.parametrize("mode", ["nf4-dq", "int8-training"])
def test_training_with_an_8_bit_optimizer(mode, bnb):
    made = fabric(mode)
    model = network()
    model.append(torch.nn.LayerNorm(16))
    model = made.setup_module(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = made.setup_optimizers(bnb.optim.AdamW8bit(trained, lr=1e-2))
    x, y = torch.randn(32, 64), torch.randn(32, 16)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.mse_loss(model(x), y)
        made.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
