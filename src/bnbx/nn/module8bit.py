"""Modules whose weight is an ``Int8Params``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from bnbx.nn.int8params import Int8Params
from bnbx.nn.module import QuantizedModule
from bnbx.ops import error

if TYPE_CHECKING:
    from bnbx.nn.parameter import QuantizedParameter

#: Codes in rows, in a checkpoint. The other layouts belonged to GPUs that are gone.
ROW_FORMAT = 0


class Module8bit(QuantizedModule):
    """A module whose ``weight`` is an ``Int8Params``, and how it is saved and loaded."""

    def _scales(self) -> Tensor | None:
        """Return the scales of the weight's rows, None if it is not quantized."""
        return getattr(self._parameter("weight"), "SCB", None)

    def _adopt_weight(self) -> None:
        """Do nothing: a module without a state of its own keeps nothing besides the weight."""

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        scales = self._scales()
        if scales is not None:
            destination[f"{prefix}SCB"] = scales if keep_vars else scales.detach()
            destination[f"{prefix}weight_format"] = torch.tensor(ROW_FORMAT, dtype=torch.uint8)

    def _is_of_weight(self, name: str) -> bool:
        return name in {"weight", "SCB", "weight_format"}

    def _read_weight(self, entries: dict[str, Tensor], *, copy: bool) -> QuantizedParameter:
        current = cast("Int8Params", self.weight)
        data = entries["weight"]
        if data.dtype != torch.int8:
            return self._read_float(current, self._float_entry(data, "SCB"), copy)
        if current.has_fp16_weights:
            hint = "Make the module with has_fp16_weights=False."
            raise error("weight", "floating point, because of has_fp16_weights", data.dtype, hint)
        if tuple(data.shape) != self._weight_shape():
            raise error("weight", f"shape {self._weight_shape()}", f"shape {tuple(data.shape)}")
        scales = self._checked_scales(entries)
        if copy:
            data = data.to(current.device, copy=True)
            scales = scales.to(current.device, copy=True)
        dtype = current.quantized_from if current.holds_codes else current.dtype
        return Int8Params(data, SCB=scales, quantized_from=dtype)

    def _read_float(self, current: Int8Params, data: Tensor, copy: bool) -> Int8Params:
        """Make a weight of floating point values, quantized if the present one is."""
        if copy:
            dtype = current.quantized_from if current.holds_codes else current.dtype
            data = data.to(current.device, dtype, copy=True)
        new = current.like(data)
        return new.to(data.device) if current.holds_codes else new

    def _checked_scales(self, entries: dict[str, Tensor]) -> Tensor:
        scales = entries.get("SCB")
        if scales is None:
            raise error("SCB", "an entry, because the weight is int8", f"only {sorted(entries)}")
        rows = self._weight_shape()[0]
        if scales.dtype != torch.float32 or tuple(scales.shape) != (rows,):
            got = f"{scales.dtype} of shape {tuple(scales.shape)}"
            raise error("SCB", f"torch.float32 of shape ({rows},)", got)
        layout: Any = torch.as_tensor(entries.get("weight_format", ROW_FORMAT)).tolist()
        if layout != ROW_FORMAT:
            raise error("weight_format", f"{ROW_FORMAT}, codes in rows", layout)
        return scales

    def _read_statistics(self, entries: dict[str, Tensor]) -> None:  # noqa: ARG002
        raise error("weight", "an Int8Params", type(self.weight).__name__)
