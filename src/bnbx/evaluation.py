"""The perplexity of a language model on a text."""

from __future__ import annotations

import dataclasses
import importlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnbx.checkpoint.optional import need
from bnbx.checkpoint.source import CONFIG, Checkpoint
from bnbx.checkpoint.text import load_tokenizer, read_tokens
from bnbx.ops import FLOAT_DTYPES, error
from bnbx.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Rows of logits that become float32 at a time: a vocabulary may have 200,000 entries.
ROWS = 128


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of a model on a text.

    Attributes
    ----------
    perplexity
        Exponential of ``loss``.
    loss
        Mean negative log-likelihood of the tokens that were predicted, in nats.
    tokens
        How many those are.
    seconds
        Time that the windows took, without loading.
    """

    perplexity: float
    loss: float
    tokens: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        speed = self.tokens / self.seconds
        return (
            f"perplexity {self.perplexity:.4f} (loss {self.loss:.5f}) on {self.tokens:,} tokens, "
            f"{self.seconds:.1f} s, {speed:,.0f} tokens/s"
        )


@torch.inference_mode()
def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int = 1024,
    stride: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure how well a causal language model predicts tokens.

    The first token of the text is not predicted, and with a stride as long as the window neither is
    the first of any other window.

    Parameters
    ----------
    model
        Takes int64 tokens of shape ``(1, n)`` and returns something with ``logits`` of shape
        ``(1, n, vocabulary)``, as the models of transformers do.
    tokens
        int64 of shape ``(n,)``, at least two.
    window
        Tokens that the model sees at a time, at least two.
    stride
        Tokens from the begin of a window to that of the next; by default ``window``. With a
        shorter one each token is predicted from at least ``window - stride`` others, once.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If an argument is wrong, or the model's logits are no numbers.
    """
    stride = window if stride is None else stride
    if tokens.dim() != 1 or len(tokens) < 2:
        raise error("tokens", "a vector of at least 2", f"shape {tuple(tokens.shape)}")
    if window < 2:
        raise error("window", "at least 2 tokens", window)
    if not 1 <= stride <= window:
        raise error("stride", f"1 to {window}, the window", stride)
    start = time.perf_counter()
    total, count = 0.0, 0
    with Progress(len(tokens), "perplexity", "token", show=progress) as bar:
        for begin, first, end in _windows(len(tokens), window, stride):
            total += _loss(model, tokens[begin:end], first - begin)
            count += end - first
            bar.advance(end - first, f"{math.exp(min(total / count, 700.0)):.3f}")
    loss = total / count
    if not math.isfinite(loss):
        raise error("model", "finite logits", f"a loss of {loss}")
    return Evaluation(math.exp(min(loss, 700.0)), loss, count, time.perf_counter() - start)


def _windows(count: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield begin, first token to predict, and end of each window."""
    done = 0
    for begin in range(0, count, stride):
        end = min(begin + window, count)
        first = max(done, begin + 1)  # the first token of a window has nothing before it
        if first < end:
            yield begin, first, end
        done = end
        if end == count:
            return


def _loss(model: nn.Module, tokens: Tensor, first: int) -> float:
    """Return the summed loss of the tokens from ``first`` on."""
    logits = model(tokens.unsqueeze(0)).logits[0, first - 1 : -1]
    pieces = zip(logits.split(ROWS), tokens[first:].split(ROWS), strict=True)
    losses = (nn.functional.cross_entropy(x.float(), y, reduction="sum") for x, y in pieces)
    return float(sum(loss.item() for loss in losses))


def evaluate(
    model: Path | str,
    text: Path | str,
    *,
    window: int = 1024,
    stride: int | None = None,
    dtype: torch.dtype | None = None,
    limit_tokens: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Load a language model and its tokenizer from a directory and measure its perplexity.

    Quantized checkpoints run on bnbx's kernels, whether bitsandbytes is installed or not.

    Parameters
    ----------
    model
        A directory of a causal language model with safetensors. No code of it is run.
    text
        A UTF-8 file. No special tokens are added.
    window, stride, progress
        As for ``perplexity``; the window at most what the model is made for.
    dtype
        Of the weights that are not quantized; by default as they are stored.
    limit_tokens
        Use only the first tokens.

    Returns
    -------
    Evaluation
        The figures.

    Raises
    ------
    ValueError
        If an argument is wrong, the directory holds no safetensors, or the text is too short.
    ImportError
        If transformers is not installed.
    """
    what = "measuring perplexity"
    transformers = need("transformers", what)
    if dtype not in {None, *FLOAT_DTYPES}:
        raise error("dtype", f"one of {FLOAT_DTYPES}", dtype)
    folder, text = Path(model), Path(text)
    if not (folder / CONFIG).is_file():
        raise error("model", f"a directory with {CONFIG}", f"{folder}")
    with Checkpoint(folder) as checkpoint:
        is_quantized = bool(checkpoint.quantized_by())
    if is_quantized:
        # transformers looks for bitsandbytes: it finds bnbx.
        importlib.import_module("bnbx.compat.bitsandbytes")
    tokens = read_tokens(load_tokenizer(folder, what), text, limit_tokens)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype or "auto",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    ).eval()
    longest = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise error("window", f"at most {longest}, what the model is made for", window)
    device = next(network.parameters()).device
    return perplexity(network, tokens.to(device), window=window, stride=stride, progress=progress)
