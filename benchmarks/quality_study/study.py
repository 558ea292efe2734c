"""Measures what a model has lost: perplexity, and divergence from what it was."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from demo_parts import inputs, measure
from demo_parts.packages import TEXT_PACKAGE

import bnbx
from quality_study.measures import loss, peak, predictions, reset_peak
from quality_study.results import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from quality_study.variants import Variant

#: Tokens of a window; every so many-th summary makes a text.
WINDOW, STRIDE = 1024, 100
#: Texts on which models are compared: from which summary on, and how many tokens.
TEXTS = (((0,), 10 * WINDOW), ((10, 30), 20 * WINDOW))
#: Where the summaries begin that calibration reads: between those.
CALIBRATION = (50, 25)


def summaries(tokenizer: Any, starts: tuple[int, ...], tokens: int) -> Tensor:
    """Return tokens of every 100th Wikipedia summary from each start on, as windows."""
    file = inputs.package_file(TEXT_PACKAGE, "summaries_en*.json")
    every = [entry["extract"] for entry in json.loads(file.read_text(encoding="utf-8")).values()]
    text = "\n\n".join(text for start in starts for text in every[start::STRIDE])
    found = tokenizer(text[: 8 * tokens], add_special_tokens=False, verbose=False).input_ids
    if len(found) < tokens:
        raise SystemExit(f"The summaries have {len(found):,} tokens and {tokens:,} are needed.")
    return torch.tensor(found[:tokens]).view(-1, WINDOW)


def load() -> tuple[nn.Module, Any]:
    """Return SmolLM2-135M-Instruct in bfloat16 and its tokenizer."""
    return inputs.load_model(None)


def measured(model: nn.Module, tokenizer: Any, variants: Sequence[Variant]) -> Iterator[Row]:
    """Yield what the unquantized model and then the variants are worth."""
    texts = [summaries(tokenizer, *text) for text in TEXTS]
    reading = summaries(tokenizer, CALIBRATION, max((v.tokens for v in variants), default=0))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}") for number in range(len(texts))]
        expected = [predictions(model, *text) for text in zip(texts, files, strict=True)]
        pairs = list(zip(texts, expected, strict=True))
        yield Row("bf16", 0, tuple(loss(model, *pair) for pair in pairs), measure.size(model))
        for variant in variants:
            yield _measured(variant, model, pairs, reading)


def _measured(
    variant: Variant, model: nn.Module, texts: Sequence[tuple[Tensor, Tensor]], reading: Tensor
) -> Row:
    quantized = copy.deepcopy(model)
    windows = list(reading[: variant.tokens // WINDOW])
    before, start = reset_peak(), time.process_time()
    variant.quantize(quantized, windows)
    seconds, memory = time.process_time() - start, peak() - before
    size = measure.size(quantized)
    bnbx.dequantize_(quantized)  # the same products for all, of what the codes stand for
    losses = tuple(loss(quantized, *text) for text in texts)
    if variant.signs is not None:  # it has written values, not codes: there is nothing to measure
        return Row(variant.name, variant.tokens, losses, 0)
    return Row(variant.name, variant.tokens, losses, size, seconds, memory)
