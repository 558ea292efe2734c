"""Weights in floating point from the entries of a quantized checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bnbx.checkpoint.tensor_file import printable
from bnbx.functional import int8_vectorwise_dequant
from bnbx.functional.quant_state import PACKED_PREFIX
from bnbx.nn import Params4bit
from bnbx.nn.module8bit import ROW_FORMAT
from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bnbx.checkpoint.source import Checkpoint

_STATE = f".quant_state.{PACKED_PREFIX}"


def quantized_weights(checkpoint: Checkpoint) -> dict[str, tuple[str, list[str]]]:
    """Return the quantized weights of a checkpoint: name -> format, names of all its entries."""
    names = checkpoint.tensors
    found: dict[str, tuple[str, list[str]]] = {}
    by_weight: dict[str, list[str]] = {}
    for name in names:
        # With a dot before: of one bare layer it is `weight.absmax`, without a module's name.
        module, mark, _ = f".{name}".rpartition(".weight.")
        if mark:
            by_weight.setdefault(f"{module}.weight"[1:], []).append(name)
    for weight, entries in by_weight.items():
        state = next((entry for entry in entries if _STATE in entry), None)
        if state is not None and weight in names:
            found[weight] = (state.rpartition(PACKED_PREFIX)[2], [weight, *entries])
    for name in names:
        prefix, last = name.removesuffix("SCB"), name.rpartition(".")[2]
        weight = f"{prefix}weight"
        if last == "SCB" and weight in names:
            layout = [f"{prefix}weight_format"] if f"{prefix}weight_format" in names else []
            found[weight] = ("int8", [weight, name, *layout])
    return {name: found[name] for name in names if name in found}


def decode(name: str, kind: str, entries: Mapping[str, Tensor]) -> Tensor:
    """Return a weight in floating point.

    Parameters
    ----------
    name
        Of the weight.
    kind
        ``"nf4"``, ``"fp4"`` or ``"int8"``.
    entries
        What belongs to it by name, as ``Settings.encode`` returns it.

    Raises
    ------
    ValueError
        If an entry is missing or not what it has to be; it names the weight.
    """
    try:
        return _decode_int8(name, entries) if kind == "int8" else _decode_4bit(name, entries)
    except ValueError as failure:
        msg = f"tensor {printable(name)}: {failure}"
        raise ValueError(msg) from failure


def _decode_4bit(name: str, entries: Mapping[str, Tensor]) -> Tensor:
    statistics = {key: value for key, value in entries.items() if key != name}
    return Params4bit.from_prequantized(entries[name], statistics).dequantize()


def _decode_int8(name: str, entries: Mapping[str, Tensor]) -> Tensor:
    prefix = name.removesuffix("weight")
    codes, scales = entries[name], entries[f"{prefix}SCB"]
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise error("weight", "a matrix of torch.int8", f"{codes.dtype} {tuple(codes.shape)}")
    if scales.dtype != torch.float32 or scales.shape != codes.shape[:1]:
        got = f"{scales.dtype} of shape {tuple(scales.shape)}"
        raise error("SCB", f"torch.float32 of shape ({codes.shape[0]},)", got)
    layout: Any = torch.as_tensor(entries.get(f"{prefix}weight_format", ROW_FORMAT)).tolist()
    if layout != ROW_FORMAT:
        raise error("weight_format", f"{ROW_FORMAT}, codes in rows", layout)
    return int8_vectorwise_dequant(codes, scales)
