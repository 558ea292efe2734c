"""``bnbx eval``: the perplexity of a language model on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbx.cli.arguments import dtype, positive
from bnbx.evaluation import evaluate

if TYPE_CHECKING:
    import argparse

HELP = "perplexity of a language model on a text"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, help="directory of a model, quantized or not")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument(
        "--window", type=positive, default=1024, help="tokens that the model sees; default: 1024"
    )
    parser.add_argument(
        "--stride", type=positive, help="tokens from one window to the next; default: the window"
    )
    parser.add_argument("--dtype", type=dtype, help="of what is not quantized; default: as stored")
    parser.add_argument("--limit-tokens", type=positive, help="use only the first tokens")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Carry the command out and return its report."""
    evaluation = evaluate(
        options.model,
        options.text,
        window=options.window,
        stride=options.stride,
        dtype=options.dtype,
        limit_tokens=options.limit_tokens,
        progress=not options.no_progress,
    )
    return evaluation.as_dict(), str(evaluation)
