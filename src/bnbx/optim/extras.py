"""What some settings need beside the moments: norms, rounding of bfloat16, counts on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.ops import error
from bnbx.optim.capture import counted_on_device
from bnbx.optim.state import local

if TYPE_CHECKING:
    from collections.abc import Callable

#: The settings that need the norm of a whole parameter, their value for none, and what they keep.
_NORM_STATES = (("max_unorm", 0.0, "unorm_vec", 1), ("percentile_clipping", 100, "gnorm_vec", 100))
#: The settings that say how a parameter of bfloat16 is rounded; with none of them, to the nearest.
_ROUNDINGS = ("kahan_sum", "bf16_stochastic_round")


def refuse_sparse(where: str, gradient: Tensor) -> None:
    """Raise ``ValueError`` with where a gradient stands if it is not dense."""
    if gradient.layout is not torch.strided:
        hint = "Make it dense; embeddings take sparse=False."
        raise error(where, "a dense gradient", gradient.layout, hint)


def needs_more(config: dict[str, Any]) -> bool:
    """Return whether the settings need anything beside the moments."""
    norms = config["max_unorm"] > 0.0 or config["percentile_clipping"] < 100
    return bool(norms or config["capturable"] or any(config[key] for key in _ROUNDINGS))


def add_extras(
    p: Tensor,
    state: dict[str, Any],
    config: dict[str, Any],
    where: str,
    zeros: Callable[..., Tensor],
) -> None:
    """Add what the settings of a parameter need to its state, or refuse them.

    Parameters
    ----------
    p, state, config
        The parameter, its state and its settings.
    where
        The parameter's name in errors.
    zeros
        Makes what has the parameter's shape, as ``torch.zeros`` does.

    Raises
    ------
    ValueError
        If settings exclude each other or cannot be had for this parameter.
    """
    check_rounding(f" of {where}", config)
    rounding = rounding_of(p, config)
    if rounding == "kahan_sum" and "compensation" not in state:
        shape = tuple(local(p).shape)
        state["compensation"] = zeros(shape, dtype=torch.bfloat16, device=p.device)
    elif rounding == "bf16_stochastic_round" and "seed" not in state:
        state["seed"] = int(torch.randint(2**63 - 1, (), device="cpu"))
    if config["capturable"]:
        counted_on_device(state, p.device)
    for setting, off, key, numel in _NORM_STATES:
        if config[setting] == off:
            continue
        if any(not placement.is_replicate() for placement in getattr(p, "placements", ())):
            expected = f"{off} for a parameter of which each process has a shard"
            raise error(f"{setting} of {where}", expected, config[setting])
        if key not in state:
            state[key] = torch.zeros(numel, device=p.device)


def check_rounding(where: str, config: dict[str, Any]) -> None:
    """Raise ``ValueError`` unless parameters of bfloat16 can be rounded as the settings say."""
    if config["bf16_stochastic_round"] and config["kahan_sum"]:
        raise error(f"kahan_sum{where}", "False where bf16_stochastic_round is True", True)


def rounding_of(p: Tensor, config: dict[str, Any]) -> str | None:
    """Return the setting by which a parameter is rounded, or None for to the nearest."""
    if p.dtype is not torch.bfloat16:
        return None
    return next((key for key in _ROUNDINGS if config[key]), None)


def last_arguments(
    rounding: str | None, states: list[dict[str, Any]], live: Tensor | None
) -> tuple[Any, ...]:
    """Return the last arguments of an update: how parameters are rounded, and ``live``."""
    if rounding == "bf16_stochastic_round":
        return None, [state["seed"] for state in states], live
    if rounding == "kahan_sum":
        return [state["compensation"] for state in states], None, live
    return () if live is None else (None, None, live)
