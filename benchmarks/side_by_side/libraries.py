"""Who takes part: bnbx with each instruction set, and the other libraries that are installed."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from typing import TYPE_CHECKING

import torch

from bnbx.backends import BACKENDS
from side_by_side.timing import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from side_by_side.timing import Function

#: Others that were looked for and are not there -> why.
MISSING: dict[str, str] = {}


def isas() -> list[str]:
    """Return bnbx's instruction sets on this machine, best first; ``["reference"]`` if none."""
    details = next(b for b in BACKENDS if b.name == "cpu").details
    return details.get("available_isas", ["reference"])


def bnbx_sides(make: Callable[[], Sequence[Function]]) -> dict[str, Callable[[], Call]]:
    """Return a side for each instruction set; they share what ``make`` prepares."""
    make = functools.cache(make)

    def side(isa: str) -> Call:
        if isa == "reference":
            return Call(make())
        select = importlib.import_module("bnbx._ext._cpu").select_isa
        return Call(make(), prepare=functools.partial(select, isa))

    return {f"bnbx {isa}": functools.partial(side, isa) for isa in isas()}


@functools.cache
def bitsandbytes() -> ModuleType | None:
    """Return the library, silenced, or None if it is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    return _optional("bitsandbytes")


@functools.cache
def torchao() -> ModuleType | None:
    """Return the library, silenced, or None if it is not installed."""
    # It warns of its CUDA libraries, and torch of what it registers.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching", category=UserWarning)
    return _optional("torchao")


@functools.cache
def deepspeed_adam() -> Callable[..., torch.optim.Optimizer] | None:
    """Return DeepSpeed's Adam for CPUs, compiled, or None if it is not there or does not build."""
    logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)
    try:
        optimizer = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
        optimizer([torch.nn.Parameter(torch.zeros(1))])  # the first one compiles it
    except ImportError:
        MISSING["DeepSpeed CPUAdam"] = "not installed"
    except Exception as failure:  # noqa: BLE001 (a build fails in many ways; the report says how)
        MISSING["DeepSpeed CPUAdam"] = f"does not build: {failure}".splitlines()[0]
    else:
        return optimizer
    return None


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        MISSING[name] = "not installed"
        return None
