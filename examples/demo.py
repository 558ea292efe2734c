"""Quantize a real language model, measure what that costs, and fine-tune it with LoRA adapters.

`nox -s demo` installs what this needs and runs it. It loads SmolLM2-135M-Instruct, holds it in
16 bit, NF4, FP4 and int8 in turn, and prints for each its size, its perplexity on Wikipedia
summaries, its speed and an answer to a question. Then it trains LoRA adapters on the NF4 model with
an 8-bit optimizer. The figures and a plot go to the output folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from demo_parts.packages import require_packages


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=20_000, help="predicted for the perplexity")
    parser.add_argument("--steps", type=int, default=30, help="of fine-tuning; 0 leaves it out")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument("--quick", action="store_true", help="2,000 tokens and 5 steps")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="FOLDER")
    parser.add_argument(
        "--model", type=Path, help="a .gguf file or a transformers folder instead of SmolLM2"
    )
    parser.add_argument("--text", type=Path, help="a text file instead of Wikipedia summaries")
    parser.add_argument(
        "--compare-bitsandbytes",
        action="store_true",
        help="measure bitsandbytes on the same model and text, too",
    )
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.steps = 2_000, 5
    if options.tokens < 1 or options.steps < 0:
        parser.error("--tokens must be at least 1, and --steps at least 0")
    return options


def main() -> None:
    """Run the demo."""
    options = arguments()
    require_packages(
        own_model=options.model is not None,
        own_text=options.text is not None,
        bitsandbytes=options.compare_bitsandbytes,
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from installed packages
    from demo_parts.run import run

    run(options)


if __name__ == "__main__":
    main()
