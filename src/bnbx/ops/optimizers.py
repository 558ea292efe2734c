"""Contracts of the optimizer updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnbx.ops.checks import (
    FLOAT_DTYPES,
    blocks_of,
    check_code,
    check_device,
    check_dtype,
    check_numel,
    check_shape,
)
from bnbx.ops.contract import error, operation

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Elements that share one scale in an 8-bit optimizer state.
OPTIMIZER_BLOCKSIZE = 256
#: Families that the optimizer kernels implement, in the order of ``bnbx::OptimizerRule``.
OPTIMIZERS = ("adam",)


def _check_update(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    steps: Sequence[int],
    states: dict[str, Sequence[Tensor]],
    state_dtype: torch.dtype,
) -> None:
    if optimizer_name not in OPTIMIZERS:
        raise error("optimizer_name", f"one of {OPTIMIZERS}", repr(optimizer_name))
    for argument, values in {"g": g, "step": steps, **states}.items():
        if len(values) != len(p):
            raise error(argument, f"{len(p)} entries, one per parameter", len(values))
    # Hundreds of parameters come in one call: what is right is passed over quickly, and only what
    # is not gets a name.
    kinds = [
        (argument, values, argument.startswith("absmax")) for argument, values in states.items()
    ]
    for i, parameter in enumerate(p):
        if parameter.dtype not in FLOAT_DTYPES or not parameter.is_contiguous():
            check_dtype(f"p[{i}]", parameter, *FLOAT_DTYPES)
            raise error(f"p[{i}]", "a contiguous tensor", f"strides {parameter.stride()}")
        shape, device = parameter.shape, parameter.device
        gradient = g[i]
        if (
            gradient.dtype not in FLOAT_DTYPES
            or gradient.shape != shape
            or gradient.device != device
        ):
            check_dtype(f"g[{i}]", gradient, *FLOAT_DTYPES)
            check_shape(f"g[{i}]", gradient, shape)
            check_device(parameter, **{f"g[{i}]": gradient})
        if steps[i] < 1:
            raise error(f"step[{i}]", "at least 1, counted from the first update", steps[i])
        blocks = blocks_of(parameter.numel(), OPTIMIZER_BLOCKSIZE)
        for argument, values, scale in kinds:
            state = values[i]
            if (
                state.dtype is not (torch.float32 if scale else state_dtype)
                or (state.numel() != blocks if scale else state.shape != shape)
                or not state.is_contiguous()
                or state.device != device
            ):
                _explain_state(f"{argument}[{i}]", state, parameter, state_dtype, scale=scale)


def _explain_state(
    argument: str, state: Tensor, p: Tensor, dtype: torch.dtype, *, scale: bool
) -> None:
    if scale:
        check_dtype(argument, state, torch.float32)
        blocks = blocks_of(p.numel(), OPTIMIZER_BLOCKSIZE)
        check_numel(argument, state, blocks, f"one per {OPTIMIZER_BLOCKSIZE} elements")
    else:
        check_dtype(argument, state, dtype)
        check_shape(argument, state, p.shape)
    check_device(p, **{argument: state})
    raise error(argument, "a contiguous tensor", f"strides {state.stride()}")


@operation(
    "optimizer_update_32bit(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, "
    "Tensor(c!)[] state2, int[] step, float lr, float beta1, float beta2, float beta3, "
    "float alpha, float eps, float weight_decay, float gnorm_scale=1.0, bool skip_zeros=False) "
    "-> ()"
)
def optimizer_update_32bit(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
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
) -> None:
    """Update the parameters ``p`` and their float32 states in place, the whole list at once."""
    states = {"state1": state1, "state2": state2}
    _check_update(optimizer_name, g, p, step, states, torch.float32)


@operation(
    "optimizer_update_8bit_blockwise(str optimizer_name, Tensor[] g, Tensor(a!)[] p, "
    "Tensor(b!)[] state1, Tensor(c!)[] state2, Tensor qmap1, Tensor qmap2, "
    "Tensor(d!)[] absmax1, Tensor(e!)[] absmax2, int[] step, float lr, float beta1, float beta2, "
    "float beta3, float alpha, float eps, float weight_decay, float gnorm_scale=1.0, "
    "bool skip_zeros=False) -> ()"
)
def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
    qmap1: Tensor,
    qmap2: Tensor,
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
) -> None:
    """Like ``optimizer_update_32bit``, with uint8 states in blocks of 256 and their absmax."""
    states = {"state1": state1, "state2": state2, "absmax1": absmax1, "absmax2": absmax2}
    _check_update(optimizer_name, g, p, step, states, torch.uint8)
    check_code("qmap1", qmap1)
    check_code("qmap2", qmap2)
    if p:
        check_device(p[0], qmap1=qmap1, qmap2=qmap2)
