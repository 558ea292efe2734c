"""Text for a model, in tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bnbx.checkpoint.optional import need
from bnbx.ops import error

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def load_tokenizer(folder: Path, what_for: str) -> Any:
    """Return the tokenizer of a model; no code of the directory is run.

    Parameters
    ----------
    folder
        The model's directory.
    what_for
        What needs it, for the error without transformers.

    Raises
    ------
    ValueError
        If transformers finds no tokenizer there.
    ImportError
        If transformers is not installed.
    """
    transformers = need("transformers", what_for)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as failure:  # whatever transformers raises at files that may be hostile
        got = f"none: {str(failure)[:200]}"
        raise error(f"{folder}", "a tokenizer that transformers reads", got) from failure


def read_tokens(tokenizer: Any, text: Path, limit: int | None = None) -> Tensor:
    """Return the tokens of a UTF-8 file, at most ``limit``, int64; no special ones are added.

    Raises
    ------
    ValueError
        If there is no such file, or not of text in UTF-8, or less than two tokens in it.
    """
    if not text.is_file():
        raise error("text", "a file", f"{text}")
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as failure:
        raise error("text", "UTF-8", f"{text}: {failure}") from failure
    tokens = tokenizer(content, add_special_tokens=False, verbose=False).input_ids[:limit]
    if len(tokens) < 2:
        raise error("text", "at least 2 tokens", len(tokens))
    return torch.tensor(tokens)
