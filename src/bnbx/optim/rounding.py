"""How parameters of bfloat16 are rounded: to the nearest, at random, or with a compensation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnbx.ops import error
from bnbx.optim.state import local

#: The settings that say how; with none of them, to the nearest.
ROUNDINGS = ("kahan_sum", "bf16_stochastic_round")


def rounding_of(p: Tensor, config: dict[str, Any]) -> str | None:
    """Return the setting that says how a parameter is rounded, if there is one."""
    if p.dtype is not torch.bfloat16:
        return None
    return next((key for key in ROUNDINGS if config[key]), None)


def check_rounding(where: str, config: dict[str, Any]) -> None:
    """Raise ``ValueError`` if both settings are on, of which one would have no effect."""
    if all(config[key] for key in ROUNDINGS):
        raise error(f"kahan_sum{where}", "False where bf16_stochastic_round is True", True)


def add_rounding(p: Tensor, state: dict[str, Any], config: dict[str, Any]) -> None:
    """Add what a setting needs beside the states of a parameter, where the state has none yet."""
    rounding = rounding_of(p, config)
    if rounding == "kahan_sum" and "compensation" not in state:
        state["compensation"] = torch.zeros_like(local(p), memory_format=torch.contiguous_format)
    if rounding == "bf16_stochastic_round" and "seed" not in state:
        state["seed"] = int(torch.randint(2**63 - 1, (), device="cpu"))
