"""What the inputs of layers look like: a model run over sample batches, block after block."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.nn import Module

    from bnbx.quantize.plan import Layer

#: Second moments of each input by itself, or of all pairs.
METHODS = ("imatrix", "gptq")


class _Moments:
    """Adds up the second moments of what a layer gets."""

    def __init__(self, name: str, *, pairs: bool) -> None:
        self.name, self.pairs = name, pairs
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, _: Module, args: tuple[Any, ...]) -> None:
        rows = args[0].detach().reshape(-1, args[0].shape[-1]).float()
        # A sum over all rows: a NaN or an infinity anywhere is one in the squares too.
        new = rows.t() @ rows if self.pairs else rows.square().sum(dim=0)
        if not bool(new.isfinite().all()):
            hint = "Look at the batch, and at the layers before it."
            raise error(
                "calibration", "finite inputs of every layer", f"others of {self.name}", hint
            )
        self.total = new if self.total is None else self.total.add_(new)
        self.rows += len(rows)

    def mean(self) -> Tensor:
        if self.total is None or self.rows == 0:
            hint = "Skip the layer, or add batches that use it."
            raise error("calibration", f"batches that reach {self.name}", "none that does", hint)
        return self.total / self.rows


class _Reached(Exception):  # noqa: N818 (no error: a forward pass that need not go on)
    pass


@dataclasses.dataclass
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def calibrated(
    model: Module, layers: Sequence[Layer], batches: Iterable[Any], method: str
) -> Iterator[tuple[list[Layer], dict[str, Tensor]]]:
    """Yield layers with the mean second moments of their inputs, by name; they may change then.

    The blocks of a stack of blocks come one after the other, each with the inputs that it gets
    once those before it have changed; the moments of one block are in memory at a time, and the
    inputs of one block for all batches. What is not in a stack comes layer by layer, with one pass
    of the whole model for each.

    Parameters
    ----------
    model
        What the batches are given to, without gradients and in evaluation mode.
    layers
        Those that are wanted, in the model's order.
    batches
        Tensors, tuples of arguments or dicts of keywords.
    method
        One of ``METHODS``: ``(K,)`` moments or ``(K, K)``.

    Raises
    ------
    ValueError
        If a layer gets no inputs, or inputs that are not finite, or if there are no batches.
    """
    if method not in METHODS:
        raise error("calibration_method", f"one of {METHODS}", repr(method))
    if isinstance(batches, Tensor | dict):
        raise error("calibration", "several batches, in a list or another iterable", type(batches))
    calls = [_call(batch) for batch in batches]
    if not calls:
        raise error("calibration", "at least one batch", "none")
    pairs = method == "gptq"
    stack = _stack(model, layers)
    inside = [[y for y in layers if y.names[0].startswith(f"{block}.")] for block in stack]
    of_blocks = {layer.names[0] for group in inside for layer in group}
    before_stack = True
    for layer in layers:
        if layer.names[0] in of_blocks:
            if before_stack:
                yield from _through(model, stack, inside, calls, pairs=pairs)
                before_stack = False
            continue
        with _evaluating(model), _watching(model, [layer], pairs=pairs) as moments:
            for call in calls:
                model(*call.args, **call.kwargs)
        yield [layer], {name: m.mean() for name, m in moments.items()}


def _call(batch: Any) -> _Call:
    if isinstance(batch, Tensor):
        return _Call((batch,), {})
    if isinstance(batch, tuple | list):
        return _Call(tuple(batch), {})
    if hasattr(batch, "keys"):
        return _Call((), dict(batch))
    raise error("calibration", "batches that are tensors, tuples or dicts", type(batch).__name__)


def _stack(model: Module, layers: Sequence[Layer]) -> list[str]:
    """Return the names of the blocks of the ModuleList that has the most of the layers."""
    best: list[str] = []
    most = 1
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.ModuleList) or len(module) < 2:
            continue
        blocks = [f"{name}.{i}" if name else str(i) for i in range(len(module))]
        count = sum(y.names[0].startswith(tuple(f"{b}." for b in blocks)) for y in layers)
        if count > most and all(_takes_what_it_gives(block) for block in module):
            best, most = blocks, count
    return best


def _takes_what_it_gives(block: Module) -> bool:
    return not isinstance(block, torch.nn.Linear | torch.nn.ModuleList)


def _through(
    model: Module,
    stack: Sequence[str],
    inside: Sequence[list[Layer]],
    calls: Sequence[_Call],
    *,
    pairs: bool,
) -> Iterator[tuple[list[Layer], dict[str, Tensor]]]:
    with _evaluating(model):
        inputs = [_reach(model, stack[0], call) for call in calls]
    for name, group in zip(stack, inside, strict=True):
        block = model.get_submodule(name)
        with _evaluating(model), _watching(model, group, pairs=pairs) as moments:
            for call in inputs:
                block(*call.args, **call.kwargs)
        yield group, {layer: m.mean() for layer, m in moments.items()}
        del moments
        with _evaluating(model):
            for call in inputs:
                out = block(*call.args, **call.kwargs)
                hidden = out if isinstance(out, Tensor) else out[0]
                if call.args:
                    call.args = (hidden, *call.args[1:])
                else:
                    call.kwargs["hidden_states"] = hidden


def _reach(model: Module, name: str, call: _Call) -> _Call:
    """Return what a block is called with when the model is called."""
    found: list[_Call] = []

    def stop(_: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_Call(args, dict(kwargs)))
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(_Reached):
            model(*call.args, **call.kwargs)
    finally:
        handle.remove()
    if not found:
        raise error("calibration", f"batches that reach {name}", "one that does not")
    # A cache would make the second call of a block another one than the first.
    kept = {k: None if k in _CACHES else v for k, v in found[0].kwargs.items()}
    return _Call(found[0].args, kept)


_CACHES = ("past_key_values", "past_key_value", "layer_past")


@contextlib.contextmanager
def _watching(
    model: Module, layers: Sequence[Layer], *, pairs: bool
) -> Iterator[dict[str, _Moments]]:
    moments = {layer.names[0]: _Moments(layer.names[0], pairs=pairs) for layer in layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(m.add) for name, m in moments.items()
    ]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    """Switch gradients and, module by module, training mode off for a while."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
