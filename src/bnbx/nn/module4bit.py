"""Modules whose weight is a ``Params4bit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from bnbx.functional import QuantState
from bnbx.nn.module import QuantizedModule
from bnbx.nn.params4bit import Params4bit, stored_as
from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor

    from bnbx.nn.parameter import QuantizedParameter

_STATISTICS = "weight.absmax, weight.quant_map and weight.quant_state.bitsandbytes__<type>"


class Module4bit(QuantizedModule):
    """A module whose ``weight`` is a ``Params4bit``, and how it is saved and loaded.

    Attributes
    ----------
    quant_state
        The weight's quantization state; None until it is quantized.
    """

    quant_state: QuantState | None

    def _packed_weight(self) -> tuple[Tensor, QuantState]:
        """Return the packed codes as a plain tensor, and their state."""
        weight = self._parameter("weight")
        if isinstance(weight, Params4bit):
            state = weight.quant_state
            weight = weight.plain()
        else:
            state = self.quant_state
        if state is None:
            raise self._not_quantized()
        return weight, state

    def _adopt_weight(self) -> None:
        weight = self._parameters.get("weight")
        if isinstance(weight, Params4bit):
            if weight.module is None:
                weight.module = self
            self.quant_state = weight.quant_state

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = self.weight
        state = weight.quant_state if isinstance(weight, Params4bit) else self.quant_state
        if state is not None:
            for name, value in state.as_dict(packed=True).items():
                destination[f"{prefix}weight.{name}"] = value if keep_vars else value.detach()

    def _is_of_weight(self, name: str) -> bool:
        return name == "weight" or name.startswith("weight.")

    def _read_weight(self, entries: dict[str, Tensor], *, copy: bool) -> QuantizedParameter:
        current = cast("Params4bit", self.weight)
        data = entries["weight"]
        device = current.device if copy else data.device
        statistics = {name: value for name, value in entries.items() if name != "weight"}
        if not statistics:
            return self._read_float(current, self._float_entry(data, _STATISTICS), copy)
        if copy:
            data = data.to(device, copy=True)
            statistics = {name: value.clone() for name, value in statistics.items()}
        new = Params4bit.from_prequantized(data, statistics, current.requires_grad, device)
        state = new.quant_state
        if state is None or tuple(state.shape) != self._weight_shape():
            raise error("weight.quant_state", f"shape {self._weight_shape()}", state)
        if copy:
            new.replace_data(stored_as(data, current.quant_storage, state.shape.numel()))
            new.quant_storage = current.quant_storage
        return new

    def _read_float(self, current: Params4bit, data: Tensor, copy: bool) -> Params4bit:
        """Make a weight of floating point values, quantized if the present one is."""
        if copy:
            state = current.quant_state if current.bnb_quantized else None
            dtype = current.dtype if state is None else state.dtype
            data = data.to(current.device, dtype, copy=True)
        new = current.like(data, quant_state=None, bnb_quantized=False)
        return new.to(data.device) if current.bnb_quantized else new

    def _read_statistics(self, entries: dict[str, Tensor]) -> None:
        statistics = {name: value for name, value in entries.items() if name != "weight"}
        if statistics:
            self.quant_state = QuantState.from_dict(statistics, device=self.weight.device)
