"""``quantize_`` and ``dequantize_``: a model's linear layers to k bits and back, in place."""

from __future__ import annotations

from bnbx.quantize.convert import dequantize_, quantize_
from bnbx.quantize.report import LayerReport, QuantizationReport

__all__ = ["LayerReport", "QuantizationReport", "dequantize_", "quantize_"]
