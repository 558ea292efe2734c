"""Contracts of the optimizer updates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

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
from bnbx.ops.contract import error, operation

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Elements that share one scale in an optimizer state, by its number of bits.
OPTIMIZER_BLOCKSIZES = {4: 128, 8: 256}
OPTIMIZER_BLOCKSIZE = OPTIMIZER_BLOCKSIZES[8]


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


def _check_update(
    bits: int,
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    steps: Sequence[int],
    states: Sequence[Sequence[Tensor]],
    scales: Sequence[Sequence[Tensor]],
    unorm_vec: Sequence[Tensor],
    max_unorm: float,
) -> None:
    if optimizer_name not in OPTIMIZERS:
        raise error("optimizer_name", f"one of {tuple(OPTIMIZERS)}", repr(optimizer_name))
    if not max_unorm >= 0.0:
        raise error("max_unorm", "a number of at least 0", max_unorm)
    rule = RULES[OPTIMIZERS[optimizer_name]]
    kept = f"entries: the states of {optimizer_name} are {len(rule)}"
    for name, lists in (("state", states), ("absmax", scales)):
        for number, values in enumerate(lists, 1):
            _check_count(f"{name}{number}", values, p, number <= len(rule), kept)
    _check_count("g", g, p)
    _check_count("step", steps, p)
    _check_count("unorm_vec", unorm_vec, p, max_unorm > 0.0, "entries when max_unorm is 0")
    kinds = [(f"state{i + 1}", states[i], stacked) for i, (_, stacked) in enumerate(rule)]
    # Float tensors, with how many entries they have for each block and at all.
    floats = [(f"absmax{i + 1}", scales[i], rule[i].stacked, 0) for i in range(len(rule)) if scales]
    if max_unorm > 0.0:
        floats.append(("unorm_vec", unorm_vec, 0, 1))
    _check_tensors(bits, g, p, steps, kinds, floats)


def _check_tensors(
    bits: int,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    steps: Sequence[int],
    kinds: list[tuple[str, Sequence[Tensor], int]],
    floats: list[tuple[str, Sequence[Tensor], int, int]],
) -> None:
    # Hundreds of parameters come in one call: what is right is passed over quickly, and only what
    # is not gets a name.
    dtype = torch.float32 if bits == 32 else torch.uint8
    blocksize = OPTIMIZER_BLOCKSIZES.get(bits, 1)
    for i, parameter in enumerate(p):
        shape, device, gradient = parameter.shape, parameter.device, g[i]
        if (
            parameter.dtype not in FLOAT_DTYPES
            or not parameter.is_contiguous()
            or gradient.dtype not in FLOAT_DTYPES
            or gradient.shape != shape
            or gradient.device != device
        ):
            _explain_parameter(i, parameter, gradient)
        if steps[i] < 1:
            raise error(f"step[{i}]", "at least 1, counted from the first update", steps[i])
        codes = codes_shape(shape, bits) if bits == 4 else shape
        for argument, values, stacked in kinds:
            state = values[i]
            if (
                state.dtype is not dtype
                or state.shape != (codes if stacked == 1 else (stacked, *codes))
                or state.device != device
                or not state.is_contiguous()
            ):
                wanted = state_shape(codes, stacked)
                _explain_state(f"{argument}[{i}]", state, parameter, dtype, wanted)
        blocks = blocks_of(parameter.numel(), blocksize)
        for argument, values, each, more in floats:
            state, numel = values[i], each * blocks + more
            if (
                state.dtype is not torch.float32
                or state.numel() != numel
                or state.device != device
                or not state.is_contiguous()
            ):
                why = f"{each} per {blocksize} elements" if each else "the update's norm"
                _explain_floats(f"{argument}[{i}]", state, parameter, numel, why)


def _check_maps(
    bits: int, optimizer_name: str, p: Sequence[Tensor], qmap1: Tensor, qmap2: Tensor | None
) -> None:
    check_vector("qmap1", qmap1, torch.float32, 2**bits)
    if len(RULES[OPTIMIZERS[optimizer_name]]) > 1:
        if qmap2 is None:
            raise error("qmap2", f"a codebook of {2**bits} entries for state2", None)
        check_vector("qmap2", qmap2, torch.float32, 2**bits)
    elif qmap2 is not None:
        raise error("qmap2", f"None: {optimizer_name} keeps one state", "a tensor")
    if p:
        check_device(p[0], qmap1=qmap1, qmap2=qmap2)


def _check_rounding(
    p: Sequence[Tensor], compensation: Sequence[Tensor] | None, seed: Sequence[int] | None
) -> None:
    if compensation is None and seed is None:
        return
    if compensation is not None and seed is not None:
        raise error("seed", "None where compensation is given", "both")
    argument, values = ("compensation", compensation) if seed is None else ("seed", seed)
    _check_count(argument, values or (), p)
    for i, parameter in enumerate(p):
        if parameter.dtype is not torch.bfloat16:
            expected = f"torch.bfloat16, for a parameter with {argument}"
            raise error(f"p[{i}]", expected, parameter.dtype)
        if compensation is None:
            continue
        rest, name = compensation[i], f"compensation[{i}]"
        check_dtype(name, rest, torch.bfloat16)
        check_shape(name, rest, parameter.shape)
        if rest.device != parameter.device or not rest.is_contiguous():
            _explain_place(name, rest, parameter)


def _check_count(
    argument: str, values: Sequence[object], p: Sequence[Tensor], wanted: bool = True, why: str = ""
) -> None:
    if len(values) != (len(p) if wanted else 0):
        expected = f"{len(p)} entries, one per parameter" if wanted else f"no {why}"
        raise error(argument, expected, len(values))


def _explain_floats(argument: str, values: Tensor, p: Tensor, numel: int, why: str) -> None:
    check_dtype(argument, values, torch.float32)
    check_numel(argument, values, numel, why)
    _explain_place(argument, values, p)


def _explain_parameter(i: int, p: Tensor, g: Tensor) -> None:
    check_dtype(f"p[{i}]", p, *FLOAT_DTYPES)
    if not p.is_contiguous():
        raise error(f"p[{i}]", "a contiguous tensor", f"strides {p.stride()}")
    check_dtype(f"g[{i}]", g, *FLOAT_DTYPES)
    check_shape(f"g[{i}]", g, p.shape)
    check_device(p, **{f"g[{i}]": g})


def _explain_state(
    argument: str, state: Tensor, p: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    check_dtype(argument, state, dtype)
    check_shape(argument, state, shape)
    _explain_place(argument, state, p)


def _explain_place(argument: str, state: Tensor, p: Tensor) -> None:
    check_device(p, **{argument: state})
    raise error(argument, "a contiguous tensor", f"strides {state.stride()}")


@operation(
    "optimizer_update_32bit(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, "
    "Tensor(c!)[] state2, Tensor(d!)[] unorm_vec, int[] step, float lr, float beta1, float beta2, "
    "float beta3, float alpha, float eps, float weight_decay, float gnorm_scale=1.0, "
    "bool skip_zeros=False, float max_unorm=0.0, Tensor(e!)[]? compensation=None, "
    "int[]? seed=None) -> ()"
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
) -> None:
    """Update the parameters ``p`` and their float32 states in place, the whole list at once.

    ``state2`` is empty for rules that keep one state. With a ``max_unorm`` above 0 an update whose
    norm, without ``lr``, is above that share of the parameter's is shortened to it, and
    ``unorm_vec`` gets the norm of each update; without one it is empty.

    Parameters of bfloat16 need not be rounded to the nearest. With ``compensation``, bfloat16 of
    their shapes, a parameter is the sum of both (Kahan 1965). With ``seed``, an int for each, it is
    rounded up or down at random, by bits that follow from seed, step and number of the element.
    """
    states = (state1, state2)
    _check_update(32, optimizer_name, g, p, step, states, (), unorm_vec, max_unorm)
    _check_rounding(p, compensation, seed)


@operation(
    "optimizer_update_blockwise(str optimizer_name, int bits, Tensor[] g, Tensor(a!)[] p, "
    "Tensor(b!)[] state1, Tensor(c!)[] state2, Tensor(d!)[] unorm_vec, Tensor qmap1, "
    "Tensor? qmap2, Tensor(e!)[] absmax1, Tensor(f!)[] absmax2, int[] step, float lr, "
    "float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, "
    "float gnorm_scale=1.0, bool skip_zeros=False, float max_unorm=0.0, "
    "Tensor(g!)[]? compensation=None, int[]? seed=None) -> ()"
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
) -> None:
    """Like ``optimizer_update_32bit``, with states of 8 or 4 bits in blocks, and their absmax.

    A state is uint8: of the parameter's shape with 8 bits, of ``(ceil(numel / 2),)`` with 4, two
    codes a byte, the first in the high nibble; where it stacks two values, with a 2 in front. Each
    ``OPTIMIZER_BLOCKSIZES[bits]`` codes share an absmax. A map has ``2**bits`` ascending entries.
    """
    if bits not in OPTIMIZER_BLOCKSIZES:
        raise error("bits", f"one of {tuple(OPTIMIZER_BLOCKSIZES)}", bits)
    states, scales = (state1, state2), (absmax1, absmax2)
    _check_update(bits, optimizer_name, g, p, step, states, scales, unorm_vec, max_unorm)
    _check_rounding(p, compensation, seed)
    _check_maps(bits, optimizer_name, p, qmap1, qmap2)
