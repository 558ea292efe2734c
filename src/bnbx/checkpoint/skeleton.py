"""A model of transformers without memory for its weights, to ask what its tensors are."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bnbx.checkpoint.optional import need
from bnbx.nn.experts import expert_weights
from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bnbx.checkpoint.source import Checkpoint

_TRUST = "Only models that transformers has the code of can be asked; try layers_from='names'."


@dataclasses.dataclass(frozen=True)
class LinearLayer:
    """A linear layer of the model.

    Attributes
    ----------
    name
        In the model.
    shape
        Of the weight in an unquantized checkpoint.
    transposed
        Whether that is ``(in, out)``: the layout of ``Conv1D``.
    reason_to_keep
        Why transformers leaves it in 16 bit; nothing if it does not.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool
    reason_to_keep: str


class Skeleton:
    """The model that config.json describes, on the meta device.

    Parameters
    ----------
    checkpoint
        A directory with a config.json. No code of it is run.

    Attributes
    ----------
    class_name
        The class of the model.

    Raises
    ------
    ValueError
        If transformers has no such model, or if it cannot be the model of these tensors.
    ImportError
        If transformers is not installed.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        transformers = need("transformers", "asking the model for its linear layers")
        self._conv1d = need("transformers.pytorch_utils", "").Conv1D
        self._matching = need("transformers.quantizers.quantizers_utils", "")
        self._model = _on_meta(transformers, read_config(checkpoint))
        self.class_name = type(self._model).__name__
        base = need("transformers.quantizers.base", "").HfQuantizer
        self._fp32 = list(self._model._keep_in_fp32_modules or ())  # noqa: SLF001
        self._default = base.get_modules_to_not_convert(self._model, None, self._fp32)
        self._tied = self._tied_modules()
        self._linear = dict(self._linear_layers())
        self._experts = {
            f"{name}.{weight}"
            for name, module in self._model.named_modules()
            for weight in expert_weights(module)
        }
        self._prepare_names()

    def layer_of(self, tensor: str) -> LinearLayer | None:
        """Return the layer whose weight a tensor of the checkpoint is; None if it is of none."""
        name, converter = self._renamed(tensor)
        module, _, last = name.rpartition(".")
        # What a converter merges or splits is not one weight of the model.
        return self._linear.get(module) if last == "weight" and converter is None else None

    def is_of_experts(self, tensor: str) -> bool:
        """Whether a tensor of the checkpoint is a matrix of experts, or a stack of them."""
        return self._renamed(tensor)[0] in self._experts

    def others(self, quantized: Iterable[str]) -> list[str]:
        """Return the names of the linear layers that are not among ``quantized``.

        Raises
        ------
        ValueError
            If such a list cannot say it, because transformers takes its entries for patterns.
        """
        quantized = set(quantized)
        names = sorted(set(self._linear) - quantized)
        for name in quantized:
            if not self._converts(name, [*names, *self._fp32]):
                hint = "Leave it too, or quantize the others."
                raise error("skip", f"a list that does not match {name} as well", names, hint)
        return names

    def _linear_layers(self) -> Iterable[tuple[str, LinearLayer]]:
        for name, module in self._model.named_modules():
            transposed = isinstance(module, self._conv1d)
            if type(module) is not nn.Linear and not transposed:
                continue
            reason = ""
            if name in self._tied:
                reason = "tied to another tensor"
            elif not self._converts(name, self._default):
                reason = "an output layer, or one that transformers keeps in 16 or 32 bit"
            yield name, LinearLayer(name, tuple(module.weight.shape), transposed, reason)

    def _converts(self, name: str, patterns: list[str]) -> bool:
        answer: bool = self._matching.should_convert_module(name, patterns)
        return answer

    def _tied_modules(self) -> set[str]:
        tied = self._model.all_tied_weights_keys
        return {key.removesuffix(".weight") for key in (*tied.keys(), *tied.values())}

    def _prepare_names(self) -> None:
        """Learn how names in checkpoints of this model become names in the model."""
        loading = need("transformers.core_model_loading", "")
        mapping = need("transformers.conversion_mapping", "")
        transforms = mapping.get_model_conversion_mapping(self._model)
        converters = [t for t in transforms if isinstance(t, loading.WeightConverter)]
        renamings = [t for t in transforms if not isinstance(t, loading.WeightConverter)]
        prefix, state = self._model.base_model_prefix, self._model.state_dict()

        def rename(tensor: str) -> tuple[str, str | None]:
            answer: tuple[str, str | None] = loading.rename_source_key(
                tensor, renamings, converters, prefix, state
            )
            return answer

        self._renamed = rename


def read_config(checkpoint: Checkpoint) -> Any:
    """Return transformers' configuration of a checkpoint.

    Raises
    ------
    ValueError
        If transformers has no such model, or if it has more layers than the file has tensors.
    """
    transformers = need("transformers", "reading config.json")
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise error("config.json", "a model_type of transformers", repr(model_type), _TRUST)
    try:
        config = transformers.CONFIG_MAPPING[model_type].from_dict(dict(checkpoint.config))
    except Exception as failure:  # whatever transformers raises at a file that may be hostile
        raise error("config.json", f"one of a {model_type!r}", repr(failure)[:200]) from failure
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > len(checkpoint.tensors):
        expected = f"at most {len(checkpoint.tensors)}, the number of tensors"
        raise error("config.json: num_hidden_layers", expected, layers)
    return config


def _on_meta(transformers: Any, config: Any) -> Any:
    """Return the model of a configuration, on the meta device."""
    kind = model_class(transformers, config)
    try:
        with torch.device("meta"):
            return kind._from_config(config)  # noqa: SLF001 (as transformers' own Auto classes do)
    except Exception as failure:  # likewise
        raise error("config.json", f"one of a {kind.__name__}", repr(failure)[:200]) from failure


def model_class(transformers: Any, config: Any) -> Any:
    """Return the class of the model that a configuration is of.

    Raises
    ------
    ValueError
        If the configuration names none that transformers has.
    """
    names = config.architectures or ()
    for name in names:
        kind = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    if not names:
        kind = transformers.MODEL_MAPPING.get(type(config), None)
        if kind is not None:
            return kind
    raise error("config.json: architectures", "a class of transformers", names, _TRUST)
