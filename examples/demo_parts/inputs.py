"""The model and the text: from installed packages, or from the user."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers

from demo_parts.packages import MODEL_PACKAGE, TEXT_PACKAGE

#: More characters than this many a token are hardly ever needed; the rest is not tokenized.
CHARACTERS_PER_TOKEN = 8


def package_file(package: str, pattern: str) -> Path:
    """Return the one file of an installed package whose name matches; the package is not imported.

    Raises
    ------
    SystemExit
        If the package has no such file.
    """
    spec = importlib.util.find_spec(package)
    roots = (spec.submodule_search_locations if spec else None) or []
    found = sorted(path for root in roots for path in Path(root).rglob(pattern))
    if not found:
        raise SystemExit(f"The package {package} has no file {pattern}; try another version of it.")
    return found[0]


def load_model(path: Path | None) -> tuple[Any, Any]:
    """Return a causal language model in bfloat16, ready for inference, and its tokenizer.

    Parameters
    ----------
    path
        A .gguf file or a folder that transformers can read; None for SmolLM2-135M-Instruct.

    Raises
    ------
    SystemExit
        If there is nothing at ``path``.
    """
    path = path or package_file(MODEL_PACKAGE, "*.gguf")
    if not path.exists():
        raise SystemExit(f"--model: there is no file or folder {path}")
    if path.is_dir():
        folder, options = path, {}
    else:
        folder, options = path.parent, {"gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, **options
    )
    return model.eval(), tokenizer


def load_text(path: Path | None) -> str:
    """Return the text at ``path``, or Wikipedia summaries in an order that never changes.

    Raises
    ------
    SystemExit
        If there is no such file.
    """
    if path is not None:
        if not path.is_file():
            raise SystemExit(f"--text: there is no file {path}")
        return path.read_text(encoding="utf-8")
    file = package_file(TEXT_PACKAGE, "summaries_en*.json")
    entries = json.loads(file.read_text(encoding="utf-8"))
    summaries = [entry["extract"] for entry in entries.values()]
    random.Random(0).shuffle(summaries)  # the file is sorted by topic
    return "\n\n".join(summaries)


def load_tokens(
    tokenizer: Any, path: Path | None, evaluation: int, training: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first tokens of the text, for evaluation, and those that follow, for training.

    Parameters
    ----------
    tokenizer
        The model's tokenizer; it adds no special tokens.
    path
        A text file; None for the Wikipedia summaries.
    evaluation, training
        How many tokens of each.

    Raises
    ------
    SystemExit
        If the text is too short.
    """
    count = evaluation + training
    text = load_text(path)[: CHARACTERS_PER_TOKEN * count]
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(tokens) < count:
        raise SystemExit(
            f"The text has {len(tokens):,} tokens and {count:,} are needed. "
            "Give a longer one, or fewer --tokens and --steps."
        )
    first, second = torch.tensor(tokens[:count]).split((evaluation, training))
    return first, second
