"""The experts of a mixture to 4 bits and back: matrices stacked in parameters of 3 dimensions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import torch

from bnbx.nn import Params4bit
from bnbx.nn.experts import expert_weights
from bnbx.nn.parametrize import packed_parameter, quantized_parameters, replace_parameter_4bit

if TYPE_CHECKING:
    from torch.nn import Module

    from bnbx.nn.experts import PackedParameter


@dataclasses.dataclass(frozen=True)
class ExpertSettings:
    """How to quantize experts; as the arguments of ``quantize_``."""

    kind: str
    double_quant: bool
    compute_dtype: torch.dtype | None
    blocksize: int
    quant_storage: torch.dtype
    scale_search: bool

    def reason_to_leave(self, module: Module) -> str:
        """Return why experts cannot be quantized so; nothing if they can."""
        if quantized_parameters(module):
            return "it is quantized"
        if self.kind == "int8":
            return "its experts are stacked, and int8 has no product with a stack"
        if self.quant_storage != torch.uint8:
            return f"the codes of experts cannot be stored as {self.quant_storage}"
        if "forward" in vars(module):
            return "its forward has been replaced"
        reasons = (self._reason_of_shape(name, module) for name in expert_weights(module))
        return next((reason for reason in reasons if reason), "")

    def _reason_of_shape(self, name: str, module: Module) -> str:
        shape = tuple(getattr(module, name).shape)
        if len(shape) != 3:
            return f"its {name} has {len(shape)} dimensions, not 3"
        if shape[1] * shape[2] % self.blocksize:
            # The format has blocks of the flattened stack: two experts would share one.
            return (
                f"{shape[1]} x {shape[2]} weights of its {name} are no blocks of {self.blocksize}"
            )
        return ""

    def quantize(self, module: Module, name: str) -> Params4bit:
        """Quantize the stacked matrices of that name in place, and return a view of the codes."""
        replace_parameter_4bit(
            module,
            name,
            compress_statistics=self.double_quant,
            quant_type=self.kind,
            blocksize=self.blocksize,
            scale_search=self.scale_search,
        )
        parametrization = module.get_submodule(f"parametrizations.{name}.0")
        parametrization.compute_dtype = self.compute_dtype  # type: ignore[assignment]
        codes, state, _ = cast("PackedParameter", packed_parameter(module, name))
        settings = state.blocksize, state.nested, state.quant_type, codes.dtype
        return Params4bit(codes.data, False, state, *settings, bnb_quantized=True)
