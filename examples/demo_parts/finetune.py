"""LoRA fine-tuning of a quantized model with an 8-bit optimizer."""

from __future__ import annotations

import statistics
from typing import Any

import peft
import torch
from torch import Tensor
from tqdm import tqdm

import bnbx
from demo_parts.lora import lora_config

LEARNING_RATE = 1e-3
RANK = 16


def with_adapters(model: Any) -> Any:
    """Return the model with a trainable adapter on every linear layer but the output."""
    torch.manual_seed(0)
    config = lora_config(
        r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def train(model: Any, batches: Tensor) -> tuple[list[float], list[float]]:
    """Train the adapters.

    Texts differ more from each other than thirty steps of training change, so each loss comes with
    the one that the model without adapters has on the same text.

    Parameters
    ----------
    model
        A model of transformers with adapters.
    batches
        Tokens, int64 of shape ``(steps, sequences, tokens)``.

    Returns
    -------
    tuple of two lists
        The loss of each step, and that of the model without adapters.
    """
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = bnbx.optim.AdamW8bit(adapters, lr=LEARNING_RATE)
    model.train()
    losses: list[float] = []
    without: list[float] = []
    for batch in (progress := tqdm(batches, desc="LoRA", unit="step")):
        with torch.no_grad(), model.disable_adapter():
            without.append(model(input_ids=batch, labels=batch).loss.item())
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", without=f"{without[-1]:.3f}")
    model.eval()
    return losses, without


def summary(losses: list[float], without: list[float]) -> str:
    """Return how far the loss fell, as two lines."""
    share = max(1, len(losses) // 5)
    parts = {"first": slice(share), "last": slice(-share, None)}
    return "\n".join(
        f"Mean loss in the {name} {share} of {len(losses)} steps: "
        f"{statistics.mean(losses[part]):.3f}, without adapters on the same text "
        f"{statistics.mean(without[part]):.3f}"
        for name, part in parts.items()
    )
