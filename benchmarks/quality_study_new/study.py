"""Perplexity of SmolLM2-135M in 4 bits: plain, searched scales, and scales from calibration.

Every linear layer but the output, blocks of 64. The text is every 100th of the Wikipedia summaries
that examples/demo.py reads; the calibration text is made of summaries between those.

    python benchmarks/quality_study.py --json benchmarks/results/MACHINE/quality.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import torch
from demo_parts import inputs, measure
from demo_parts.packages import TEXT_PACKAGE

import bnbx
from common import default_threads, set_threads

WINDOW, WINDOWS, STRIDE = 1024, 10, 100
#: What is compared: name, tokens of calibration, and arguments of ``bnbx.quantize_``.
VARIANTS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("NF4", 0, {}),
    ("NF4, scale search", 0, {"scale_search": True}),
    ("NF4, imatrix", 4096, {"calibration_method": "imatrix"}),
    ("NF4, GPTQ", 16384, {"calibration_method": "gptq"}),
    ("NF4, double quantization", 0, {"double_quant": True}),
    ("NF4, GPTQ, double quantization", 16384, {"double_quant": True}),
    ("FP4", 0, {"kind": "fp4"}),
    ("FP4, GPTQ", 16384, {"kind": "fp4"}),
)


def summaries(tokenizer: Any, starts: tuple[int, ...], tokens: int) -> torch.Tensor:
    """Return tokens of every 100th summary from each start on, as windows."""
    file = inputs.package_file(TEXT_PACKAGE, "summaries_en*.json")
    every = [entry["extract"] for entry in json.loads(file.read_text(encoding="utf-8")).values()]
    text = "\n\n".join(text for start in starts for text in every[start::STRIDE])
    found = tokenizer(text[: 8 * tokens], add_special_tokens=False, verbose=False).input_ids
    if len(found) < tokens:
        raise SystemExit(f"The summaries have {len(found):,} tokens and {tokens:,} are needed.")
    return torch.tensor(found[:tokens]).view(-1, WINDOW)


def study(names: list[str]) -> list[dict[str, Any]]:
    """Measure bf16 and the variants of these names, all without any."""
    model, tokenizer = inputs.load_model(None)
    text = summaries(tokenizer, (0,), WINDOWS * WINDOW)
    calibration = summaries(tokenizer, (50, 25), max(tokens for _, tokens, _ in VARIANTS))
    perplexity = measure.perplexity(model, text, "bf16")
    rows = [{"name": "bf16", "perplexity": perplexity, "bytes": measure.size(model)}]
    print(rows[-1])
    for name, tokens, changes in VARIANTS:
        if names and name not in names:
            continue
        quantized = copy.deepcopy(model)
        batches = list(calibration[: tokens // WINDOW].split(1)) if tokens else None
        settings: dict[str, Any] = {"double_quant": False, **changes}
        start = time.perf_counter()
        bnbx.quantize_(quantized, skip="lm_head", calibration=batches, **settings)
        seconds = time.perf_counter() - start
        size = measure.size(quantized)
        bnbx.dequantize_(quantized)  # the same products for all, of what the codes stand for
        perplexity = measure.perplexity(quantized, text, name)
        rows.append({"name": name, "perplexity": perplexity, "bytes": size, "seconds": seconds})
        rows[-1]["calibration_tokens"] = tokens
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="some variants")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    set_threads(options.threads)
    rows = study(options.only)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
