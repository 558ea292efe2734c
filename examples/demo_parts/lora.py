"""LoRA adapters on bnbx's layers, as peft wants to be told about them.

peft takes a bnbx layer for what it is, a torch.nn.Linear, which is right in training: it adds the
adapter's product to the layer's. It is wrong wherever peft adds to the weight itself, because a
quantized weight holds codes. The layer below refuses that; `bnbx.dequantize_(model)` comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig
from peft.tuners import lora

from bnbx.nn import Linear4bit, Linear8bitLt
from bnbx.ops import error

if TYPE_CHECKING:
    from torch import nn

QUANTIZED = (Linear4bit, Linear8bitLt)


class QuantizedLoraLinear(lora.Linear):
    """A linear layer with an adapter, whose weight may be quantized."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type | None]:
        """Plain LoRA only: DoRA and the other variants read the weight."""
        return {(): None}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the weight.

        Parameters
        ----------
        safe_merge
            Whether peft looks for NaN first.
        adapter_names
            Which ones; by default those in use.

        Raises
        ------
        ValueError
            If the weight is quantized.
        """
        if isinstance(self.get_base_layer(), QUANTIZED):
            raise error(
                "base_layer.weight",
                "a weight of 16 or 32 bits to add the adapter to",
                "a quantized one",
                "Call bnbx.dequantize_(model) before merging.",
            )
        super().merge(safe_merge, adapter_names)


def lora_config(**options: object) -> LoraConfig:
    """Return a LoraConfig that puts `QuantizedLoraLinear` on bnbx's layers.

    Parameters
    ----------
    options
        The arguments of peft's LoraConfig.
    """
    config = LoraConfig(**options)
    layers: dict[type[nn.Module], type[nn.Module]] = dict.fromkeys(QUANTIZED, QuantizedLoraLinear)
    config._register_custom_module(layers)  # noqa: SLF001 (peft documents it under this name)
    return config
