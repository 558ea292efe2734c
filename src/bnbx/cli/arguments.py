"""Types of arguments that several commands take."""

from __future__ import annotations

import argparse
import re

import torch

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.uint8, torch.bfloat16, torch.float16, torch.float32)
}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
UNITS |= {f"{prefix}I": 1 << (10 * power) for power, prefix in enumerate("KMG", 1)}


def dtype(text: str) -> torch.dtype:
    """Return the dtype of a name such as ``bfloat16``."""
    if text not in DTYPES:
        msg = f"expected one of {', '.join(DTYPES)}, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return DTYPES[text]


def size(text: str) -> int:
    """Return the bytes of a size such as ``5GB`` or ``512MiB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if match is None or match[2] not in UNITS:
        msg = f"expected a size such as 5GB or 512MiB, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(float(match[1]) * UNITS[match[2]])


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        msg = f"expected a whole number above 0, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)
