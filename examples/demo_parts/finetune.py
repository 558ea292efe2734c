"""LoRA fine-tuning of a quantized model with an 8-bit optimizer."""

from __future__ import annotations

import statistics
import time
from typing import Any

import peft
import torch
from torch import Tensor
from tqdm import tqdm

import bnbx
from demo_parts.lora import lora_config

LEARNING_RATE = 1e-3
RANK = 16


#: Steps of each model when their speed is compared.
TIMED_STEPS = 5


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
    optimizer = _optimizer(model, bnbx)
    model.train()
    losses: list[float] = []
    without: list[float] = []
    for batch in (progress := tqdm(batches, desc="LoRA", unit="step")):
        with torch.no_grad(), model.disable_adapter():
            without.append(model(input_ids=batch, labels=batch).loss.item())
        losses.append(_step(model, optimizer, batch))
        progress.set_postfix(loss=f"{losses[-1]:.3f}", without=f"{without[-1]:.3f}")
    model.eval()
    return losses, without


def _optimizer(model: Any, library: Any) -> Any:
    adapters = [p for p in model.parameters() if p.requires_grad]
    return library.optim.AdamW8bit(adapters, lr=LEARNING_RATE)


def _step(model: Any, optimizer: Any, batch: Tensor) -> float:
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def seconds_per_step(models: dict[str, Any], batches: Tensor) -> dict[str, float]:
    """Return the median time of a training step by model; the models take turns.

    Parameters
    ----------
    models
        Models with adapters. One whose name starts with ``"bitsandbytes"`` gets its optimizer.
    batches
        As for ``train``; the first serves to warm up, and the next ``TIMED_STEPS`` are timed.
    """
    optimizers = {}
    for name, model in models.items():
        library = bnbx
        if name.startswith("bitsandbytes"):
            import bitsandbytes as library
        optimizers[name] = _optimizer(model, library)
        model.train()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for batch in tqdm(batches[: TIMED_STEPS + 1], desc="seconds per step", leave=False):
        for name, model in models.items():
            start = time.perf_counter()
            _step(model, optimizers[name], batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}


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
