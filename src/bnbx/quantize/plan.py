"""Which layers of a model can be quantized, and why the others cannot."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
from typing import TYPE_CHECKING, Any, cast

import torch

from bnbx.nn.experts import expert_weights
from bnbx.nn.module import QuantizedModule
from bnbx.ops import FLOAT_DTYPES, error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from torch.nn import Module

    from bnbx.quantize.experts import ExpertSettings

    Skip = str | Sequence[str] | Callable[[str, Module], bool]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer by its names in the model; layers with the same weights have the same ``tie``.

    Experts are a layer with two weights that are stacks of matrices.
    """

    names: tuple[str, ...]
    tie: tuple[Any, ...]
    weights: tuple[str, ...] = ("weight",)

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer, not experts."""
        return self.weights == ("weight",)


def plan(
    model: Module, skip: Skip, experts: ExpertSettings, *, untie: bool
) -> tuple[list[Layer], dict[str, str], tuple[str, ...]]:
    """Return the layers to quantize, the others with a reason, and what of ``skip`` was not used.

    It holds no reference to a module or a weight, which would keep it in memory.
    """
    entries = [skip] if isinstance(skip, str) else [] if callable(skip) else list(skip)
    for entry in entries:
        if not isinstance(entry, str):
            raise error("skip", "names, or a function of name and module", repr(entry))
    unused = dict.fromkeys(entries)
    chosen: list[Layer] = []
    skipped: dict[str, str] = {}
    for names in names_of_modules(model, torch.nn.Module):
        module = model.get_submodule(names[0])
        weights = expert_weights(module)
        if not weights and not _looks_linear(module):
            continue
        parameters = [f"{n}.{weight}" for n in names for weight in weights]
        matched = [e for e in entries if any(is_named(n, e) for n in (*names, *parameters))]
        for entry in matched:
            unused.pop(entry, None)
        if matched or (callable(skip) and skip(names[0], module)):
            reason = f"skip entry {matched[0]!r}" if matched else "skip"
        else:
            reason = (
                _reason_to_leave_experts(module, experts) if weights else _reason_to_leave(module)
            )
        weights = weights or ("weight",)
        if reason:
            skipped[names[0]] = reason
        else:
            ties = tuple(_tie(cast("Tensor", getattr(module, weight))) for weight in weights)
            chosen.append(Layer(names, ties, weights))
    if not untie:
        chosen = _without_tied(model, chosen, skipped)
    return chosen, skipped, tuple(unused)


def names_of_modules(model: Module, kind: Any) -> list[tuple[str, ...]]:
    """Return all names of each module of a kind."""
    names: dict[Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kind):
            names.setdefault(module, []).append(name)
    return [tuple(of_one) for of_one in names.values()]


def is_named(name: str, entry: str) -> bool:
    """Whether ``entry`` is a run of whole parts of the dotted name, or a pattern for all of it."""
    return f".{entry}." in f".{name}." or fnmatch.fnmatchcase(name, entry)


def _own_parameters(module: Module) -> dict[str, torch.nn.Parameter]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _looks_linear(module: Module) -> bool:
    if isinstance(module, torch.nn.Linear):
        return True
    weight = _own_parameters(module).get("weight")
    is_embedding = isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)
    return weight is not None and weight.dim() == 2 and not is_embedding


def _reason_to_leave(module: Module) -> str:
    """Return why a layer that looks linear cannot be quantized; nothing if it can."""
    kind = type(module)
    if isinstance(module, QuantizedModule):
        return "it is quantized"
    if not isinstance(module, torch.nn.Linear):
        return f"it is a {kind.__name__}, not a torch.nn.Linear"
    if kind.forward is not torch.nn.Linear.forward or "forward" in vars(module):
        return f"it is a {kind.__name__} with a forward of its own"
    if isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "the module that it belongs to reads its weight directly"
    return _reason_of_weight(_own_parameters(module).get("weight"))


def _reason_to_leave_experts(module: Module, experts: ExpertSettings) -> str:
    reason = experts.reason_to_leave(module)
    if reason:
        return reason
    own = _own_parameters(module)
    reasons = (_reason_of_weight(own.get(name)) for name in expert_weights(module))
    return next((reason for reason in reasons if reason), "")


def _reason_of_weight(weight: Tensor | None) -> str:
    if weight is None or type(weight) is not torch.nn.Parameter:
        return "its weight is not a plain parameter"
    if weight.is_meta:
        return "its weight is on the meta device"
    if weight.dtype not in FLOAT_DTYPES:
        return f"its weight is {weight.dtype}"
    return "" if weight.numel() else "its weight is empty"


def _tie(weight: Tensor) -> tuple[Any, ...]:
    """Return what two parameters have in common if they are the same, or the same memory."""
    return weight.device, weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype


def _without_tied(model: Module, chosen: list[Layer], skipped: dict[str, str]) -> list[Layer]:
    """Return the layers whose weight is only theirs, and add the others to ``skipped``."""
    # Of linear layers that are tied to each other each gets the same codes; of experts not.
    used = collections.Counter(tie for layer in chosen for tie in layer.tie)
    chosen_weights = {
        layer.names[0]: layer.weights
        for layer in chosen
        if layer.is_linear or all(used[tie] == 1 for tie in layer.tie)
    }
    others: dict[tuple[Any, ...], str] = {}
    for module_name, module in model.named_modules():
        for name, parameter in _own_parameters(module).items():
            is_chosen = name in chosen_weights.get(module_name, ())
            if type(parameter) is torch.nn.Parameter and not is_chosen:
                others[_tie(parameter)] = f"{module_name}.{name}" if module_name else name
    kept: list[Layer] = []
    for layer in chosen:
        tied = [others[tie] for tie in layer.tie if tie in others]
        if tied:
            skipped[layer.names[0]] = f"tied to {tied[0]}, which is not quantized"
        else:
            kept.append(layer)
    return kept
