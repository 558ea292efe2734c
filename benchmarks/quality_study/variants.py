"""What is compared: ways to quantize a model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

import bnbx
from bnbx.codebooks import get_4bit_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

#: The output layer, which is tied to the embedding and stays as it is.
SKIPPED = "lm_head"
BLOCKSIZE = 64


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to quantize a model.

    Attributes
    ----------
    name
        What it is called.
    settings
        Arguments of ``bnbx.quantize_``.
    tokens
        Of calibration; 0 for none.
    signs
        Seed of the signs that the scales get; None for those that ``settings`` give. The table of
        NF4 is not symmetric, so other signs are other roundings, and no better or worse.
    """

    name: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    signs: int | None = None

    def quantize(self, model: nn.Module, windows: Sequence[Tensor]) -> None:
        """Quantize a model in place, reading the first of these windows of tokens if it does."""
        if self.signs is not None:
            _draw_signs(model, torch.Generator().manual_seed(self.signs))
            return
        batches = None
        if self.tokens:
            batches = [window.unsqueeze(0) for window in windows]
        settings = {"calibration": batches, "progress": False, **self.settings}
        if settings.get("kind") != "int8":
            settings.setdefault("double_quant", False)
        bnbx.quantize_(model, skip=SKIPPED, **settings)


IMATRIX = {"calibration_method": "imatrix"}
SEARCH = {"scale_search": True}
RANDOM = {"calibration": "random"}
NESTED = {"double_quant": True}
VARIANTS = (
    Variant("int8", {"kind": "int8"}),
    Variant("NF4"),
    *(Variant(f"NF4, random signs {seed}", signs=seed) for seed in range(1, 4)),
    Variant("NF4, scale search", SEARCH),
    Variant("NF4, random tokens", RANDOM),
    Variant("NF4, imatrix", IMATRIX, 4096),
    Variant("NF4, imatrix, more text", IMATRIX, 16384),
    Variant("NF4, GPTQ", tokens=16384),
    Variant("NF4, double quantization", NESTED),
    Variant("NF4, scale search, double quantization", {**SEARCH, **NESTED}),
    Variant("NF4, random tokens, double quantization", {**RANDOM, **NESTED}),
    Variant("NF4, imatrix, double quantization", {**IMATRIX, **NESTED}, 4096),
    Variant("NF4, GPTQ, double quantization", NESTED, 16384),
    Variant("FP4", {"kind": "fp4"}),
    Variant("FP4, scale search", {"kind": "fp4", **SEARCH}),
    Variant("FP4, random tokens", {"kind": "fp4", **RANDOM}),
    Variant("FP4, GPTQ", {"kind": "fp4"}, 16384),
)


def _draw_signs(model: nn.Module, generator: torch.Generator) -> None:
    """Round to NF4 with plain scales of random signs."""
    code = get_4bit_type("nf4")
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != SKIPPED:
            weight = layer.weight.data
            absmax = weight.float().view(-1, BLOCKSIZE).abs().amax(1)
            scales = absmax * (2 * torch.randint(0, 2, absmax.shape, generator=generator) - 1)
            codes = torch.ops.bnbx.encode_4bit(weight, scales, BLOCKSIZE, "nf4", torch.uint8)
            state = bnbx.functional.QuantState(
                absmax=scales,
                shape=weight.shape,
                code=code,
                blocksize=BLOCKSIZE,
                quant_type="nf4",
                dtype=weight.dtype,
            )
            layer.weight.data = bnbx.functional.dequantize_4bit(codes, state)
