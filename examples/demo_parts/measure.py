"""What is measured of a model: size, perplexity, speed, and an answer."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

#: Tokens of the prompt, and tokens generated after it, when the speed is measured.
PROMPT, GENERATED = 512, 48
REPEATS = 3
ANSWER_TOKENS = 40
HEADER = f"{'':18} {'size MB':>8} {'perplexity':>11} {'generate tok/s':>15} {'prefill tok/s':>14}"


@dataclasses.dataclass
class Measurement:
    """The figures of one model.

    Attributes
    ----------
    name
        Its format.
    megabytes
        Size of what a checkpoint of it holds, in 10^6 bytes.
    perplexity
        Exponential of the mean loss per token.
    generation, prefill
        Tokens per second, one after the other and for a prompt of ``PROMPT`` tokens.
    answer
        What it says to the question.
    """

    name: str
    megabytes: float
    perplexity: float
    generation: float
    prefill: float
    answer: str

    def __str__(self) -> str:
        """Return the line of the table."""
        return (
            f"{self.name:18} {self.megabytes:8.1f} {self.perplexity:11.3f} "
            f"{self.generation:15.1f} {self.prefill:14.0f}"
        )


def measure(name: str, model: Any, tokenizer: Any, windows: Tensor, question: str) -> Measurement:
    """Return the figures of a model.

    Parameters
    ----------
    name
        What to call it.
    model, tokenizer
        A causal language model of transformers.
    windows
        Tokens, int64 of shape ``(windows, tokens)``; each window is predicted from its start.
    question
        What to ask.
    """
    megabytes = size(model) / 1e6  # first: a library may hold its weights differently after a use
    generation, prefill = speed(model, windows.flatten()[:PROMPT])
    return Measurement(
        name,
        megabytes,
        perplexity(model, windows, name),
        generation,
        prefill,
        answer(model, tokenizer, question),
    )


def size(model: nn.Module) -> int:
    """Return the bytes of the state dict, with tied weights counted once."""
    tensors = (t for t in model.state_dict().values() if isinstance(t, Tensor))
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


@torch.inference_mode()
def perplexity(model: Any, windows: Tensor, name: str) -> float:
    """Return the exponential of the mean loss of all tokens but the first of each window."""
    total = 0.0
    for window in tqdm(windows, desc=name, unit="window", leave=False):
        logits = model(window.unsqueeze(0)).logits[0, :-1].float()
        total += nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return math.exp(total / windows[:, 1:].numel())


@torch.inference_mode()
def speed(model: Any, prompt: Tensor) -> tuple[float, float]:
    """Return tokens per second in generation after the prompt and in reading the prompt."""
    prompt = prompt.unsqueeze(0)
    model(prompt[:, :8])
    reading = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        out = model(prompt, use_cache=True, logits_to_keep=1)
        reading.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(GENERATED):
        token = out.logits[:, -1:].argmax(-1)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
    generating = time.perf_counter() - start
    return GENERATED / generating, prompt.numel() / statistics.median(reading)


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """Return what the model finds most likely to follow the question, on one line."""
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    else:
        prompt = question
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    out = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        pad_token_id=tokenizer.eos_token_id,
    )
    text = tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())
