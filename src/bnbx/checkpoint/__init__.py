"""Checkpoints on disk: quantizing them tensor by tensor, and measuring what that changed."""

from __future__ import annotations

from bnbx.checkpoint.convert import quantize_checkpoint
from bnbx.checkpoint.inspection import Inspection, WeightError, inspect_checkpoint
from bnbx.checkpoint.layers import Weights, find_weights
from bnbx.checkpoint.report import CheckpointReport, TensorReport
from bnbx.checkpoint.source import Checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointReport",
    "Inspection",
    "TensorReport",
    "WeightError",
    "Weights",
    "find_weights",
    "inspect_checkpoint",
    "quantize_checkpoint",
]
