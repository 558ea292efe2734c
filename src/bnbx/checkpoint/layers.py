"""Which tensors of a checkpoint are weights of linear layers, to be quantized, and which are not.

A safetensors file does not say: a matrix may be an embedding, a table of positions or a router.
With transformers the model is built on the meta device, without memory for its weights, and asked.
Without it the names decide.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import torch

from bnbx.checkpoint.optional import available
from bnbx.checkpoint.tensor_file import printable
from bnbx.ops import FLOAT_DTYPES, error
from bnbx.quantize.plan import is_named

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bnbx.checkpoint.source import Checkpoint
    from bnbx.checkpoint.tensor_file import TensorEntry

SOURCES = ("auto", "model", "names")
#: Parts of names whose matrices are no weights of linear layers, or are better left as they are:
#: embeddings, norms, output layers, and the routers of mixtures.
KEPT_PARTS = re.compile(
    r"\w*embed\w*|\w*emb|wte|wpe|shared|\w*norm\w*|ln_?\w*|relative_attention_bias"
    r"|lm_head|embed_out|output|\w*head|heads|score|classifier|pooler|predictions"
    r"|gate|router"
)
#: Why matrices of experts stay: in the model they are stacks of three dimensions, which loaders of
#: quantized checkpoints do not know.
EXPERTS = "experts of a mixture"
#: Their linear layers are ``Conv1D``, whose weights lie the other way round: names cannot say so.
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})


@dataclasses.dataclass(frozen=True)
class Weights:
    """The decision for a checkpoint.

    Attributes
    ----------
    source
        ``"model"`` or ``"names"``.
    transposed
        Names of the tensors to quantize -> whether to transpose them before (``Conv1D``).
    kept
        Names of all other tensors -> why they stay.
    skip_modules
        Names of the linear layers that stay: what a reader of the result must not convert.
    unused_skips
        Entries of ``skip`` that no layer has as its name.
    modules
        Names of the layers to quantize in the model -> names of their tensors; nothing if the model
        was not asked.
    """

    source: str
    transposed: dict[str, bool]
    kept: dict[str, str]
    skip_modules: list[str]
    unused_skips: tuple[str, ...]
    modules: dict[str, str]


def find_weights(checkpoint: Checkpoint, skip: Sequence[str] = (), source: str = "auto") -> Weights:
    """Decide for each tensor of a checkpoint whether it is a linear layer's weight to quantize.

    Parameters
    ----------
    checkpoint
        Not quantized.
    skip
        Layers to leave: names of layers or of modules that contain them, ends of names after a dot,
        or patterns as in ``fnmatch``.
    source
        ``"model"`` asks transformers' model, ``"names"`` the names of the tensors; ``"auto"`` the
        model if there is a config.json and transformers is installed.

    Raises
    ------
    ValueError
        If an argument is wrong, if config.json does not describe a model that transformers has the
        code of, or not the tensors of this one, or if the names of such a model say too little.
    ImportError
        If ``source`` is ``"model"`` and transformers is not installed.
    """
    if source not in SOURCES:
        raise error("layers_from", f"one of {SOURCES}", repr(source))
    if source == "auto":
        can_ask = bool(checkpoint.config) and available("transformers")
        source = "model" if can_ask else "names"
    if source == "model":
        from bnbx.checkpoint.skeleton import Skeleton  # noqa: PLC0415 (imports transformers)

        return _by_model(checkpoint, Skeleton(checkpoint), skip)
    return _by_names(checkpoint, skip)


def _by_model(checkpoint: Checkpoint, skeleton: Any, skip: Sequence[str]) -> Weights:
    skips = _Skips(skip)
    transposed: dict[str, bool] = {}
    kept: dict[str, str] = {}
    quantized: dict[str, str] = {}
    for name, entry in checkpoint.tensors.items():
        layer = skeleton.layer_of(name)
        if layer is None:
            is_of_experts = skeleton.is_of_experts(name)
            other = f"no weight of a linear layer of {skeleton.class_name}"
            kept[name] = EXPERTS if is_of_experts else other
            continue
        if entry.shape != layer.shape:
            expected = f"shape {layer.shape}, as config.json says"
            raise error(f"tensor {printable(name)}", expected, f"shape {entry.shape}")
        if layer.name in quantized:
            names = f"{printable(quantized[layer.name])} and {printable(name)}"
            raise error(f"layer {layer.name}", "one weight", names)
        reason = skips.reason(layer.name, name) or layer.reason_to_keep or _reason(entry)
        if reason:
            kept[name] = reason
        else:
            quantized[layer.name] = name
            transposed[name] = layer.transposed
    skip_modules = skeleton.others(quantized)
    return Weights("model", transposed, kept, skip_modules, skips.unused(), quantized)


def _by_names(checkpoint: Checkpoint, skip: Sequence[str]) -> Weights:
    model_type = checkpoint.config.get("model_type")
    if model_type in CONV1D_MODELS:
        hint = "Install transformers."
        raise error(
            "layers_from", f"'model' for {model_type!r}, to know its layouts", "names", hint
        )
    skips = _Skips(skip)
    transposed: dict[str, bool] = {}
    kept: dict[str, str] = {}
    # The output layer is not in the file if it is tied to the embedding.
    skip_modules = {"lm_head"}
    for name, entry in checkpoint.tensors.items():
        module, _, last = name.rpartition(".")
        is_matrix = last == "weight" and len(entry.shape) == 2
        if "experts" in name.split(".") and (is_matrix or len(entry.shape) == 3):
            kept[name] = EXPERTS
            skip_modules |= {module} if is_matrix else set()
            continue
        if not is_matrix:
            kept[name] = "no weight of a linear layer by its name and shape"
            continue
        bias = checkpoint.tensors.get(f"{name.removesuffix('weight')}bias")
        if bias is not None and bias.shape != entry.shape[:1]:
            got, hint = f"shape {entry.shape}: a Conv1D?", "Quantize it with layers_from='model'."
            raise error(f"tensor {printable(name)}", f"{bias.shape} rows, as its bias", got, hint)
        reason = skips.reason(module) or _reason_by_name(module) or _reason(entry)
        if reason:
            kept[name] = reason
            skip_modules.add(module)
        else:
            transposed[name] = False
    return Weights("names", transposed, kept, sorted(skip_modules), skips.unused(), {})


def _reason(entry: TensorEntry) -> str:
    """Return why the weight of a linear layer is left."""
    if 0 in entry.shape:
        return "empty"
    if entry.dtype in FLOAT_DTYPES:
        return ""
    if entry.dtype == torch.float64:
        return "float64"
    got = f"{entry.dtype}: it is quantized already"
    raise error(f"tensor {printable(entry.name)}", f"one of {FLOAT_DTYPES}", got)


def _reason_by_name(module: str) -> str:
    part = next((part for part in module.split(".") if KEPT_PARTS.fullmatch(part)), None)
    return "" if part is None else f"{part!r} in its name"


class _Skips:
    """The entries of ``skip``, and which of them were used."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = [entries] if isinstance(entries, str) else list(entries)
        for entry in self._entries:
            if not isinstance(entry, str) or not entry:
                raise error("skip", "names or patterns", repr(entry))
        self._used: set[str] = set()

    def reason(self, *names: str) -> str:
        found = [entry for entry in self._entries if any(is_named(n, entry) for n in names)]
        self._used.update(found)
        return f"skip entry {found[0]!r}" if found else ""

    def unused(self) -> tuple[str, ...]:
        return tuple(entry for entry in self._entries if entry not in self._used)
