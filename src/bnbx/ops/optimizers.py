"""Contracts of the optimizer updates."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bnbx.ops.checks import (
    FLOAT_DTYPES,
    blocks_of,
    check_device,
    check_dtype,
    check_numel,
    check_shape,
    check_vector,
    packed_bytes,
)
from bnbx.ops.contract import Unchecked, error, operation

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Elements that share one scale in an optimizer state, by its number of bits.
OPTIMIZER_BLOCKSIZES = {4: 128, 8: 256}
OPTIMIZER_BLOCKSIZE = OPTIMIZER_BLOCKSIZES[8]


#: The columns of ``live``.
LIVE_NUMBERS = ("step", "lr", "beta3", "alpha", "gnorm_scale")


class OptimizerState(NamedTuple):
    """One state tensor of a rule.

    Attributes
    ----------
    signed
        Whether its values can be negative.
    stacked
        How many values it holds per element of the parameter: with more than one its shape, and
        that of its scales, has this number in front.
    """

    signed: bool
    stacked: int = 1


#: The update rules, in the order of ``bnbx::OptimizerRule``, with the states that they keep.
RULES: dict[str, tuple[OptimizerState, ...]] = {
    "adam": (OptimizerState(signed=True), OptimizerState(signed=False)),
    "momentum": (OptimizerState(signed=True),),
    "nesterov": (OptimizerState(signed=True),),
    "rmsprop": (OptimizerState(signed=False),),
    "adagrad": (OptimizerState(signed=False),),
    "lion": (OptimizerState(signed=True),),
    "ademamix": (OptimizerState(signed=True, stacked=2), OptimizerState(signed=False)),
}
#: The rule of each optimizer: LAMB and LARS are Adam and momentum with a ``max_unorm``.
OPTIMIZERS = {**{name: name for name in RULES}, "lamb": "adam", "lars": "momentum"}


def state_shape(shape: Sequence[int], stacked: int) -> tuple[int, ...]:
    """Return the shape of a state, or of its scales, from that of one of the values it stacks."""
    return tuple(shape) if stacked == 1 else (stacked, *shape)


def codes_shape(shape: Sequence[int], bits: int) -> tuple[int, ...]:
    """Return the shape of one value per element of ``shape``; 4-bit codes are packed, flat."""
    return (packed_bytes(math.prod(shape)),) if bits == 4 else tuple(shape)


@dataclasses.dataclass
class OptimizerUpdate(Unchecked):
    """One call of an optimizer operation; lists have an entry per parameter.

    Attributes
    ----------
    optimizer_name, bits, g, p, unorm_vec, step, compensation, seed, live
        As the operation has them; 32 bits are those of ``optimizer_update_32bit``.
    states, scales
        The states that the rule keeps, and their absmax, of which there is none with 32 bits.
    qmaps
        The codebook of each state, likewise.
    stacked
        How many values each of the states holds per element.
    hyperparameters
        ``lr`` to ``max_unorm`` in the order of the schema.
    """

    optimizer_name: str
    bits: int
    g: Sequence[Tensor]
    p: Sequence[Tensor]
    states: list[Sequence[Tensor]]
    scales: list[Sequence[Tensor]]
    qmaps: list[Tensor | None]
    unorm_vec: Sequence[Tensor]
    step: Sequence[int]
    hyperparameters: tuple[Any, ...]
    compensation: Sequence[Tensor] | None
    seed: Sequence[int] | None
    live: Tensor | None

    def __post_init__(self) -> None:
        """Raise ``ValueError`` if the name, a number or the length of a list is wrong."""
        name, max_unorm = self.optimizer_name, self.hyperparameters[-1]
        if name not in OPTIMIZERS:
            raise error("optimizer_name", f"one of {tuple(OPTIMIZERS)}", repr(name))
        if not max_unorm >= 0.0:
            raise error("max_unorm", "a number of at least 0", max_unorm)
        rule = RULES[OPTIMIZERS[name]]
        why = f"entries: the states of {name} are {len(rule)}"
        for argument, lists in (("state", self.states), ("absmax", self.scales)):
            for number, values in enumerate(lists, 1):
                self._check_count(f"{argument}{number}", values, number <= len(rule), why)
            del lists[len(rule) :]
        self._check_maps(len(rule))
        self.stacked = [state.stacked for state in rule]
        self.blocksize = OPTIMIZER_BLOCKSIZES.get(self.bits, 1)
        self._check_count("g", self.g)
        self._check_count("step", self.step, self.live is None, "entries where live has the steps")
        if self.live is not None:
            self._check_live(self.live)
        why = "entries when max_unorm is 0"
        self._check_count("unorm_vec", self.unorm_vec, max_unorm > 0.0, why)
        if self.compensation is not None:
            self._check_count("compensation", self.compensation)
        if self.seed is not None:
            self._check_count("seed", self.seed)
            if self.compensation is not None:
                raise error("seed", "None where compensation is given", "both")

    def refuse(self, i: int) -> None:
        """Raise the error of the parameter ``i``, in which a kernel has found something wrong."""
        self.check()
        lists = {"p": self.p, "g": self.g, "unorm_vec": self.unorm_vec}
        lists |= {f"state{j}": values for j, values in enumerate(self.states, 1)}
        lists |= {f"absmax{j}": values for j, values in enumerate(self.scales, 1)}
        lists |= {"compensation": self.compensation or ()}
        for argument, values in lists.items():
            for tensor in values[i : i + 1]:
                end = (tensor.storage_offset() + tensor.numel()) * tensor.itemsize
                if tensor.untyped_storage().nbytes() < end:
                    got = f"{tensor.untyped_storage().nbytes()}, of storage freed or shrunk"
                    raise error(f"{argument}[{i}]", f"memory of at least {end} bytes", got)
        msg = f"p[{i}] and its states are right, but the kernel cannot read them"
        raise RuntimeError(msg)

    def _check_count(
        self, argument: str, values: Sequence[object], wanted: bool = True, why: str = ""
    ) -> None:
        count = len(self.p)
        if len(values) != (count if wanted else 0):
            expected = f"{count} entries, one per parameter" if wanted else f"no {why}"
            raise error(argument, expected, len(values))

    def _check_live(self, live: Tensor) -> None:
        check_dtype("live", live, torch.float64)
        check_shape("live", live, (len(self.p), len(LIVE_NUMBERS)))
        if self.p:
            check_device(self.p[0], live=live)
        if not live.is_contiguous():
            raise error("live", "a contiguous tensor", f"strides {live.stride()}")
        lr, _, _, beta3, alpha, _, _, gnorm_scale, *_ = self.hyperparameters
        given = {"lr": (lr, 0.0), "beta3": (beta3, 0.0), "alpha": (alpha, 0.0)}
        given["gnorm_scale"] = gnorm_scale, 1.0
        for argument, (value, expected) in given.items():
            if value != expected:
                raise error(argument, f"{expected}, because live has it", value)

    def _check_maps(self, count: int) -> None:
        for number, qmap in enumerate(self.qmaps, 1):
            if number > count:
                if qmap is not None:
                    expected = f"None: {self.optimizer_name} keeps one state"
                    raise error(f"qmap{number}", expected, "a tensor")
                continue
            if qmap is None:
                expected = f"a codebook of {2**self.bits} entries for state{number}"
                raise error(f"qmap{number}", expected, None)
            check_vector(f"qmap{number}", qmap, torch.float32, 2**self.bits)
            if self.p:
                check_device(self.p[0], **{f"qmap{number}": qmap})

    def check(self) -> None:
        """Raise ``ValueError`` naming the first tensor or number in the lists that is wrong."""
        for i, p in enumerate(self.p):
            self._check_parameter(i, p)
            self._check_states(i, p)
            for unorm in self.unorm_vec[i : i + 1]:
                self._check_floats(f"unorm_vec[{i}]", unorm, p, 1, "the update's norm")
            if self.compensation is not None:
                name, rest = f"compensation[{i}]", self.compensation[i]
                check_dtype(name, rest, torch.bfloat16)
                check_shape(name, rest, p.shape)
                _check_place(name, rest, p)

    def _check_parameter(self, i: int, p: Tensor) -> None:
        check_dtype(f"p[{i}]", p, *FLOAT_DTYPES)
        for rounding, values in (("compensation", self.compensation), ("seed", self.seed)):
            if values is not None and p.dtype is not torch.bfloat16:
                expected = f"torch.bfloat16, for a parameter with {rounding}"
                raise error(f"p[{i}]", expected, p.dtype)
        check_device(self.p[0], **{f"p[{i}]": p})
        _check_place(f"p[{i}]", p, p)
        check_dtype(f"g[{i}]", self.g[i], *FLOAT_DTYPES)
        check_shape(f"g[{i}]", self.g[i], p.shape)
        check_device(p, **{f"g[{i}]": self.g[i]})
        if self.live is None and self.step[i] < 1:
            raise error(f"step[{i}]", "at least 1, counted from the first update", self.step[i])

    def _check_states(self, i: int, p: Tensor) -> None:
        dtype = torch.float32 if self.bits == 32 else torch.uint8
        codes = codes_shape(p.shape, self.bits)
        blocks = blocks_of(p.numel(), self.blocksize)
        for j, stacked in enumerate(self.stacked):
            name, state = f"state{j + 1}[{i}]", self.states[j][i]
            check_dtype(name, state, dtype)
            check_shape(name, state, state_shape(codes, stacked))
            _check_place(name, state, p)
            for scales in self.scales[j : j + 1]:
                name, why = f"absmax{j + 1}[{i}]", f"{stacked} per {self.blocksize} elements"
                self._check_floats(name, scales[i], p, stacked * blocks, why)

    def _check_floats(self, argument: str, values: Tensor, p: Tensor, numel: int, why: str) -> None:
        check_dtype(argument, values, torch.float32)
        check_numel(argument, values, numel, why)
        _check_place(argument, values, p)


def _check_place(argument: str, tensor: Tensor, p: Tensor) -> None:
    check_device(p, **{argument: tensor})
    if not tensor.is_contiguous():
        raise error(argument, "a contiguous tensor", f"strides {tensor.stride()}")


@operation(
    "optimizer_update_32bit(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, "
    "Tensor(c!)[] state2, Tensor(d!)[] unorm_vec, int[] step, float lr, float beta1, float beta2, "
    "float beta3, float alpha, float eps, float weight_decay, float gnorm_scale=1.0, "
    "bool skip_zeros=False, float max_unorm=0.0, Tensor(e!)[]? compensation=None, "
    "int[]? seed=None, Tensor? live=None) -> ()"
)
def optimizer_update_32bit(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
    unorm_vec: Sequence[Tensor],
    step: Sequence[int],
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float = 1.0,
    skip_zeros: bool = False,
    max_unorm: float = 0.0,
    compensation: Sequence[Tensor] | None = None,
    seed: Sequence[int] | None = None,
    live: Tensor | None = None,
) -> OptimizerUpdate:
    """Update the parameters ``p`` and their float32 states in place, the whole list at once.

    ``state2`` is empty for rules that keep one state. With a ``max_unorm`` above 0 an update whose
    norm, without ``lr``, is above that share of the parameter's is shortened to it, and
    ``unorm_vec`` gets the norm of each update; without one it is empty.

    Parameters of bfloat16 need not be rounded to the nearest. With ``compensation``, bfloat16 of
    their shapes, a parameter is the sum of both (Kahan 1965). With ``seed``, an int for each, it is
    rounded up or down at random, by bits that follow from seed, step and number of the element.

    ``live``, float64 of shape ``(len(p), 5)`` on the device of ``p``, has step, lr, beta3, alpha
    and gnorm_scale of each parameter where the host does not know them; its kernels read them when
    they run, so that a CUDA graph goes on with what stands there at a replay. ``step`` is empty
    then, and the other arguments are 0, ``gnorm_scale`` 1.
    """
    numbers = (lr, beta1, beta2, beta3, alpha, eps, weight_decay)
    return OptimizerUpdate(
        optimizer_name,
        32,
        g,
        p,
        [state1, state2],
        [],
        [],
        unorm_vec,
        step,
        (*numbers, gnorm_scale, skip_zeros, max_unorm),
        compensation,
        seed,
        live,
    )


@operation(
    "optimizer_update_blockwise(str optimizer_name, int bits, Tensor[] g, Tensor(a!)[] p, "
    "Tensor(b!)[] state1, Tensor(c!)[] state2, Tensor(d!)[] unorm_vec, Tensor qmap1, "
    "Tensor? qmap2, Tensor(e!)[] absmax1, Tensor(f!)[] absmax2, int[] step, float lr, "
    "float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, "
    "float gnorm_scale=1.0, bool skip_zeros=False, float max_unorm=0.0, "
    "Tensor(g!)[]? compensation=None, int[]? seed=None, Tensor? live=None) -> ()"
)
def optimizer_update_blockwise(
    optimizer_name: str,
    bits: int,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
    unorm_vec: Sequence[Tensor],
    qmap1: Tensor,
    qmap2: Tensor | None,
    absmax1: Sequence[Tensor],
    absmax2: Sequence[Tensor],
    step: Sequence[int],
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float = 1.0,
    skip_zeros: bool = False,
    max_unorm: float = 0.0,
    compensation: Sequence[Tensor] | None = None,
    seed: Sequence[int] | None = None,
    live: Tensor | None = None,
) -> OptimizerUpdate:
    """Like ``optimizer_update_32bit``, with states of 8 or 4 bits in blocks, and their absmax.

    A state is uint8: of the parameter's shape with 8 bits, of ``(ceil(numel / 2),)`` with 4, two
    codes a byte, the first in the high nibble; where it stacks two values, with a 2 in front. Each
    ``OPTIMIZER_BLOCKSIZES[bits]`` codes share an absmax. A map has ``2**bits`` ascending entries.
    """
    if bits not in OPTIMIZER_BLOCKSIZES:
        raise error("bits", f"one of {tuple(OPTIMIZER_BLOCKSIZES)}", bits)
    numbers = (lr, beta1, beta2, beta3, alpha, eps, weight_decay)
    return OptimizerUpdate(
        optimizer_name,
        bits,
        g,
        p,
        [state1, state2],
        [absmax1, absmax2],
        [qmap1, qmap2],
        unorm_vec,
        step,
        (*numbers, gnorm_scale, skip_zeros, max_unorm),
        compensation,
        seed,
        live,
    )
