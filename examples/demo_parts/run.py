"""The demo from loading the model to the plot."""

from __future__ import annotations

import copy
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import torch

from demo_parts import finetune, formats, inputs, measure, plot

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from torch import Tensor

QUESTION = "What is the capital of France? Answer in one sentence."
#: Tokens that the model sees at a time when its perplexity is measured.
WINDOW = 1024
#: Sequences and tokens of each in one training step.
BATCH, LENGTH = 2, 512


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Parameters
    ----------
    options
        As ``demo.arguments`` returns them.
    """
    started = time.perf_counter()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; loading the model ...")
    model, tokenizer = inputs.load_model(options.model)
    windows = -(-options.tokens // (WINDOW - 1))
    evaluation, training = inputs.load_tokens(
        tokenizer, options.text, windows * WINDOW, options.steps * BATCH * LENGTH
    )
    evaluation = evaluation.view(windows, WINDOW)
    training = training.view(options.steps, BATCH, LENGTH)

    measurements, quantized = compare(
        model, tokenizer, evaluation, bitsandbytes=options.compare_bitsandbytes
    )
    losses: list[float] = []
    without: list[float] = []
    seconds: dict[str, float] = {}
    if options.steps:
        seconds = time_steps(model, training, bitsandbytes=options.compare_bitsandbytes)
        adapted = finetune.with_adapters(quantized)
        losses, without = fine_tune(adapted, training)
        name = f"{formats.FINE_TUNED} + LoRA"
        measurements.append(measure.measure(name, adapted, tokenizer, evaluation, QUESTION))
        print(f"\n{measure.HEADER}\n{measurements[-1]}")

    print(f"\n{QUESTION}")
    for measurement in measurements:
        print(f"  {measurement.name + ':':20} {measurement.answer}")
    figure = write(options.output, measurements, losses, without, seconds)
    print(f"\nPlot: {figure}. Took {time.perf_counter() - started:.0f} s.")


def compare(
    model: Any, tokenizer: Any, evaluation: Tensor, *, bitsandbytes: bool
) -> tuple[list[measure.Measurement], Any]:
    """Measure the model in each format and print the table.

    Returns
    -------
    tuple
        The measurements, and the model to fine-tune.
    """
    print(f"Perplexity on {evaluation[:, 1:].numel():,} tokens, window {WINDOW}\n")
    print(measure.HEADER)
    measurements = []
    kept = None
    for name, quantize in formats.chosen(bitsandbytes=bitsandbytes).items():
        quantized = copy.deepcopy(model)
        quantize(quantized)
        measurements.append(measure.measure(name, quantized, tokenizer, evaluation, QUESTION))
        print(measurements[-1], flush=True)
        if name == formats.FINE_TUNED:
            kept = quantized
    return measurements, kept


def time_steps(model: Any, training: Tensor, *, bitsandbytes: bool) -> dict[str, float]:
    """Print and return the seconds of a LoRA step on the model in 16 bit and in NF4."""
    adapted = {}
    names = ("bf16", formats.FINE_TUNED, f"bitsandbytes {formats.FINE_TUNED}")
    for name, quantize in formats.chosen(bitsandbytes=bitsandbytes).items():
        if name in names:
            quantized = copy.deepcopy(model)
            quantize(quantized)
            adapted[f"{name} + LoRA"] = finetune.with_adapters(quantized)
    seconds = finetune.seconds_per_step(adapted, training)
    print(f"\nSeconds per step of {training[0].numel():,} tokens")
    for name, value in seconds.items():
        print(f"{name:24} {value:6.2f}")
    return seconds


def fine_tune(adapted: Any, training: Tensor) -> tuple[list[float], list[float]]:
    """Train the adapters and print how the loss fell; return the losses as ``finetune.train``."""
    steps, tokens = len(training), training[0].numel()
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    print(
        f"\nLoRA on {formats.FINE_TUNED}: {count:,} parameters, {steps} steps of {tokens:,} tokens"
    )
    losses, without = finetune.train(adapted, training)
    print(finetune.summary(losses, without))
    return losses, without


def write(
    folder: Path,
    measurements: list[measure.Measurement],
    losses: list[float],
    without: list[float],
    seconds: dict[str, float],
) -> Path:
    """Write the plot and the figures behind it; return the plot's path."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = folder / "demo.png"
    plot.draw(measurements, losses, without, figure)
    results = {
        "measurements": [vars(m) for m in measurements],
        "losses": losses,
        "losses_without_adapters": without,
        "seconds_per_step": seconds,
        "tokens_per_step": BATCH * LENGTH,
        "threads": torch.get_num_threads(),
    }
    (folder / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    return figure
