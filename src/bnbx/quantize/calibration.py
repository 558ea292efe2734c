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


class _Products:
    """Second moments of a tensor. Layers side by side get the same one: those are kept."""

    def __init__(self, *, pairs: bool) -> None:
        self.pairs = pairs
        self._last: tuple[Tensor, int, Tensor] | None = None

    def of(self, x: Tensor) -> Tensor:
        """Return the sums over all rows, not to be changed."""
        version = -1 if x.is_inference() else x._version  # noqa: SLF001 (counts changes in place)
        if self._last is not None and self._last[0] is x and self._last[1] == version >= 0:
            return self._last[2]
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        with torch.autocast(rows.device.type, enabled=False):
            new = rows.t() @ rows if self.pairs else rows.square().sum(dim=0)
        self._last = x, version, new
        return new


class _Moments:
    """Adds up the second moments of what a layer gets."""

    def __init__(self, name: str, products: _Products) -> None:
        self.name, self.products = name, products
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, _: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        new = self.products.of(x)
        # A sum over all rows: a NaN or an infinity anywhere is one in the squares too.
        if not bool(new.isfinite().all()):
            hint = "Look at the batch, and at the layers before it."
            raise error(
                "calibration", "finite inputs of every layer", f"others of {self.name}", hint
            )
        self.total = new.clone() if self.total is None else self.total.add_(new)
        self.rows += x.numel() // x.shape[-1]

    def take_mean(self) -> Tensor:
        if self.total is None or self.rows == 0:
            hint = "Skip the layer, or add batches that use it."
            raise error("calibration", f"batches that reach {self.name}", "none that does", hint)
        total, self.total = self.total, None
        return total.div_(self.rows)


@dataclasses.dataclass
class _Batch:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclasses.dataclass
class _Call:
    """What a block is called with; what it changes comes first, or is called hidden_states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Any:
        return self.args[0] if self.args else self.kwargs.get("hidden_states")

    def without_hidden(self) -> _Call:
        if self.args:
            return _Call((None, *self.args[1:]), self.kwargs)
        return _Call((), {**self.kwargs, "hidden_states": None})

    def run(self, block: Module, hidden: Any) -> Any:
        if self.args:
            return _first(block(hidden, *self.args[1:], **self.kwargs))
        return _first(block(**{**self.kwargs, "hidden_states": hidden}))


def calibrated(
    model: Module, layers: Sequence[Layer], batches: Iterable[Any], method: str
) -> Iterator[tuple[list[Layer], dict[str, Tensor]]]:
    """Yield layers with the mean second moments of their inputs, by name; they may change then.

    The blocks of a stack of blocks come one after the other, each with the inputs that it gets
    once those before it have changed; the moments of one block are in memory at a time, and the
    inputs of one block for all batches. What is not in a stack, or in one whose blocks are not
    called once each with what the one before returns, comes layer by layer, with one pass of the
    whole model for each.

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
    given = [_batch(batch) for batch in batches]
    if not given:
        raise error("calibration", "at least one batch", "none")
    pairs = method == "gptq"
    stack = _stack(model, layers)
    recorded = [_recorded(model, stack, batch) for batch in given] if stack else []
    calls = [of_batch for of_batch in recorded if of_batch is not None]
    if len(calls) < len(given):
        stack = []
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
            for batch in given:
                model(*batch.args, **batch.kwargs)
        yield [layer], {name: m.take_mean() for name, m in moments.items()}


def _batch(batch: Any) -> _Batch:
    if isinstance(batch, Tensor):
        return _Batch((batch,), {})
    if isinstance(batch, tuple | list):
        return _Batch(tuple(batch), {})
    if hasattr(batch, "keys"):
        return _Batch((), dict(batch))
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
        if count > most:
            best, most = blocks, count
    return best


def _through(
    model: Module,
    stack: Sequence[str],
    inside: Sequence[list[Layer]],
    batches: Sequence[list[_Call]],
    *,
    pairs: bool,
) -> Iterator[tuple[list[Layer], dict[str, Tensor]]]:
    hidden = [calls[0].hidden for calls in batches]
    for number, (name, group) in enumerate(zip(stack, inside, strict=True)):
        block = model.get_submodule(name)
        calls = [of_batch[number] for of_batch in batches]
        with _evaluating(model), _watching(model, group, pairs=pairs) as moments:
            for call, given in zip(calls, hidden, strict=True):
                call.run(block, given)
        yield group, {layer: m.take_mean() for layer, m in moments.items()}
        if number + 1 == len(stack):
            return
        with _evaluating(model):
            hidden = [call.run(block, given) for call, given in zip(calls, hidden, strict=True)]


def _recorded(model: Module, stack: Sequence[str], batch: _Batch) -> list[_Call] | None:
    """Return what each block is called with; None unless each gets what the one before returns."""
    calls: list[_Call] = []
    last: list[Any] = [None]  # what the block before has returned
    chained = True

    def before(block: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal chained
        call = _Call(args, {k: None if k in _CACHES else v for k, v in kwargs.items()})
        in_order = len(calls) < len(blocks) and block is blocks[len(calls)]
        chained &= in_order and isinstance(call.hidden, Tensor)
        chained &= not calls or call.hidden is last[0]
        # What else a block returns and the next one gets would not be renewed.
        others = (*args[1:], *kwargs.values()) if args else kwargs.values()
        chained &= not any(x is y for x in others for y in last[1:] if isinstance(y, Tensor))
        calls.append(call if not calls else call.without_hidden())

    def after(_: Module, __: Any, out: Any) -> None:
        last[:] = out if isinstance(out, tuple | list) else [out]

    blocks = [model.get_submodule(name) for name in stack]
    handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    handles += [b.register_forward_hook(after) for b in blocks]
    try:
        with _evaluating(model):
            model(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls if chained and len(calls) == len(blocks) else None


def _first(out: Any) -> Any:
    return out if isinstance(out, Tensor) or not isinstance(out, tuple | list) else out[0]


#: A cache would make the second call of a block another one than the first.
_CACHES = ("past_key_values", "past_key_value", "layer_past")


@contextlib.contextmanager
def _watching(
    model: Module, layers: Sequence[Layer], *, pairs: bool
) -> Iterator[dict[str, _Moments]]:
    products = _Products(pairs=pairs)
    moments = {layer.names[0]: _Moments(layer.names[0], products) for layer in layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(m.add, with_kwargs=True)
        for name, m in moments.items()
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
