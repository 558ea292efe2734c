"""What is measured of a model and of this process."""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from quality_study.results import Loss

#: Rows of logits that are compared at a time: what is made of them should stay in the cache.
ROWS = 8
#: Of glibc's malloc.h: larger pieces of memory get pages of their own.
M_MMAP_THRESHOLD = -3


@torch.inference_mode()
def predictions(model: nn.Module, windows: Tensor, file: Path) -> Tensor:
    """Return a model's logits for windows of tokens, but the last of each, kept in a file."""
    first = model(windows[:1]).logits[0, :-1]
    shape = (len(windows), *first.shape)
    kept = torch.from_file(f"{file}", shared=True, size=math.prod(shape), dtype=first.dtype)
    for logits, window in zip(kept.view(shape), windows, strict=True):
        logits.copy_(model(window.unsqueeze(0)).logits[0, :-1])
    return kept.view(shape)


@torch.inference_mode()
def loss(model: nn.Module, windows: Tensor, expected: Tensor) -> Loss:
    """Measure a model on windows of tokens, beside the predictions of another one."""
    nats = divergence = 0.0
    for window, exact in zip(windows, expected, strict=True):
        logits = model(window.unsqueeze(0)).logits[0, :-1]
        pieces = zip(logits.split(ROWS), exact.split(ROWS), window[1:].split(ROWS), strict=True)
        for ours, theirs, tokens in pieces:
            log_p, log_q = ours.float().log_softmax(-1), theirs.float().log_softmax(-1)
            nats += nn.functional.nll_loss(log_p, tokens, reduction="sum").item()
            divergence += nn.functional.kl_div(
                log_p, log_q, log_target=True, reduction="sum"
            ).item()
    count = windows[:, 1:].numel()
    return Loss(math.exp(nats / count), divergence / count)


def give_memory_back() -> None:
    """Let glibc return what is freed at once, so that the size of the process is what it uses."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)


def reset_peak() -> int:
    """Forget the largest size of this process and return its size now, in bytes; 0 elsewhere."""
    file = Path("/proc/self/clear_refs")
    if not file.exists():
        return 0
    file.write_text("5")
    return peak()


def peak() -> int:
    """Return the largest size of this process since it was forgotten; 0 where Linux is not."""
    file = Path("/proc/self/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
