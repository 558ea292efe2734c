"""Comparisons of optimizer steps.

A new class is one line in ``OPTIMIZERS``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch

import bnbx
from side_by_side.comparison import Comparison
from side_by_side.libraries import bitsandbytes, bnbx_sides, deepspeed_adam, torchao
from side_by_side.limits import Work
from side_by_side.steps import FUSED
from side_by_side.timing import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Factory = Callable[..., torch.optim.Optimizer]

LEARNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A class of bnbx that is timed.

    Attributes
    ----------
    name
        Of the class, in bitsandbytes too.
    states
        How many states of the parameter's shape it keeps.
    bits
        Of an element of a state.
    settings
        Arguments beside the parameters and the learning rate.
    peers
        Sides with as many bits beside fused AdamW, which all have, and the class of this name in
        bitsandbytes.
    """

    name: str
    states: int
    bits: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    peers: tuple[str, ...] = ()

    def work(self, numel: int) -> Work:
        """Return the work of a step: float32 gradient in, parameter and states in and out."""
        states = self.states * self.bits / 8
        formula = f"n (4 + 2 (4 + {states:g})) / update"
        return Work(int(numel * (4 + 2 * (4 + states))), "update", formula)


OPTIMIZERS = (
    Optimizer("Adam8bit", states=2, bits=8),
    Optimizer("AdamW8bit", states=2, bits=8, peers=("torchao AdamW8bit",)),
    Optimizer("AdamW4bit", states=2, bits=4, peers=("torchao AdamW4bit",)),
    Optimizer("Adam32bit", states=2, bits=32, peers=("torch AdamW foreach", "DeepSpeed CPUAdam")),
    Optimizer("Lion8bit", states=1, bits=8),
    Optimizer("SGD8bit", states=1, bits=8, settings={"momentum": 0.9}),
    Optimizer("AdEMAMix8bit", states=3, bits=8),
)


def state_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Return the bytes of state per parameter; tensors that parameters share count once."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = {
        tensor.data_ptr(): tensor
        for state in optimizer.state.values()
        for value in state.values()
        for tensor in _plain(value)
    }
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    return total / sum(p.numel() for p in parameters)


def _plain(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors that a state's entry consists of; torchao's are subclasses."""
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _plain(getattr(value, name))
    elif isinstance(value, torch.Tensor):
        yield value


def _call(factory: Factory, count: int, numel: int) -> Call:
    parameters = [torch.nn.Parameter(torch.randn(numel)) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.randn(numel)
    optimizer = factory(parameters, lr=LEARNING_RATE)
    return Call([optimizer.step], bytes_per_parameter=functools.partial(state_bytes, optimizer))


def _peers(optimizer: Optimizer) -> dict[str, Factory]:
    library, adamw = bitsandbytes(), torch.optim.AdamW
    peers: dict[str, Factory] = {FUSED: functools.partial(adamw, fused=True)}
    if library and hasattr(library.optim, optimizer.name):
        theirs = getattr(library.optim, optimizer.name)
        peers["bitsandbytes"] = functools.partial(theirs, **optimizer.settings)
    available = {"torch AdamW foreach": functools.partial(adamw, foreach=True)}
    if torchao():
        from torchao.optim import AdamW4bit, AdamW8bit

        available |= {"torchao AdamW8bit": AdamW8bit, "torchao AdamW4bit": AdamW4bit}
    if "DeepSpeed CPUAdam" in optimizer.peers and (factory := deepspeed_adam()):
        available["DeepSpeed CPUAdam"] = functools.partial(factory, adamw_mode=True)
    return peers | {side: available[side] for side in optimizer.peers if side in available}


def step(optimizer: Optimizer, count: int, numel: int) -> Comparison | None:
    """Return the comparison of a step on ``count`` parameters, or None without such a class."""
    if not hasattr(bnbx.optim, optimizer.name):
        return None
    ours = functools.partial(getattr(bnbx.optim, optimizer.name), **optimizer.settings)
    # One optimizer for all instruction sets: they are to find the same data.
    shared = functools.cache(functools.partial(_call, ours, count, numel))
    sides = {
        side: functools.partial(_with_state, make, shared)
        for side, make in bnbx_sides(lambda: shared().functions).items()
    }
    for side, factory in _peers(optimizer).items():
        sides[side] = functools.partial(_call, factory, count, numel)
    return Comparison(
        "optimizers",
        optimizer.work(count * numel),
        sides,
        {"operation": optimizer.name, "count": count, "numel": numel},
    )


def _with_state(make: Callable[[], Call], shared: Callable[[], Call]) -> Call:
    return dataclasses.replace(make(), bytes_per_parameter=shared().bytes_per_parameter)
