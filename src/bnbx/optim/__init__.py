"""Optimizers with states of 8 or 32 bits, and overrides of their settings by parameter."""

from __future__ import annotations

from bnbx.optim.adam import Adam, Adam8bit, Adam32bit
from bnbx.optim.adamw import AdamW, AdamW8bit, AdamW32bit
from bnbx.optim.manager import GlobalOptimManager

__all__ = [
    "Adam",
    "Adam8bit",
    "Adam32bit",
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "GlobalOptimManager",
]
