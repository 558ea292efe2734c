"""The formats that the demo compares, each a function that quantizes a model in place."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import bnbx

if TYPE_CHECKING:
    from collections.abc import Callable

#: The format whose model gets the adapters.
FINE_TUNED = "NF4"
COMPUTE_DTYPE = torch.bfloat16
#: Columns of activations that reach this stay in 16 bit: the paper's choice.
INT8_THRESHOLD = 6.0


def _unchanged(_: nn.Module) -> None:
    pass


def _quantize_4bit(model: nn.Module, quant_type: str) -> None:
    bnbx.quantize_(
        model, quant_type, double_quant=True, compute_dtype=COMPUTE_DTYPE, progress=False
    )


def _quantize_int8(model: nn.Module) -> None:
    bnbx.quantize_(model, "int8", threshold=INT8_THRESHOLD, progress=False)


def _bitsandbytes_4bit(quant_type: str, linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        COMPUTE_DTYPE,
        compress_statistics=True,
        quant_type=quant_type,
    )
    layer.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type=quant_type, module=layer
    )
    return layer


def _bitsandbytes_int8(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        has_fp16_weights=False,
        threshold=INT8_THRESHOLD,
    )
    layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False)
    return layer


def _replace(make: Callable[[nn.Linear], nn.Module], model: Any) -> None:
    """Put ``make``'s layer in place of every linear layer but the output, as transformers does."""
    output = model.get_output_embeddings()
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and linear is not output:
            layer = make(linear)
            layer.bias = linear.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.to(linear.weight.device).eval())


def chosen(*, bitsandbytes: bool) -> dict[str, Callable[[Any], None]]:
    """Return the formats by name.

    Parameters
    ----------
    bitsandbytes
        Whether bitsandbytes' are among them.
    """
    formats: dict[str, Callable[[Any], None]] = {
        "bf16": _unchanged,
        "NF4": functools.partial(_quantize_4bit, quant_type="nf4"),
        "FP4": functools.partial(_quantize_4bit, quant_type="fp4"),
        "int8": _quantize_int8,
    }
    if bitsandbytes:
        formats |= {
            "bitsandbytes NF4": functools.partial(
                _replace, functools.partial(_bitsandbytes_4bit, "nf4")
            ),
            "bitsandbytes FP4": functools.partial(
                _replace, functools.partial(_bitsandbytes_4bit, "fp4")
            ),
            "bitsandbytes int8": functools.partial(_replace, _bitsandbytes_int8),
        }
    return formats
