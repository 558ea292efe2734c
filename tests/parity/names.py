"""Describe the public names of whatever `bitsandbytes` is in this process."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import types
from typing import Any, TypeVar

PACKAGES = ("bitsandbytes", "bitsandbytes.nn", "bitsandbytes.optim")
MODULES = (
    *PACKAGES,
    *(
        f"bitsandbytes.{name}"
        for name in (
            *("autograd", "autograd._functions", "cextension", "consts", "cuda_specs"),
            *("functional", "nn.modules", "nn.parametrize", "utils"),
            *(f"optim.{name}" for name in ("adagrad", "adam", "adamw", "ademamix", "lamb")),
            *(f"optim.{name}" for name in ("lars", "lion", "optimizer", "rmsprop", "sgd")),
        )
    ),
)


def signature(value: Any) -> list[list[str]] | None:
    """Return name and default of each parameter, None if there is no signature."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return [[p.name, default(p.default)] for p in parameters if p.kind not in kinds]


def default(value: Any) -> str:
    return repr(float(value)) if type(value) in {int, float} else repr(value)


def describe() -> dict[str, dict[str, list[list[str]] | None]]:
    """Return module -> public name -> signature. Modules and what is imported do not count."""
    found: dict[str, Any] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        found[name] = {}
        for attribute, value in vars(module).items():
            home = getattr(value, "__module__", None) if callable(value) else None
            foreign = home is not None and not home.startswith(("bitsandbytes", "bnbx"))
            if (
                attribute.startswith("_")
                or isinstance(value, types.ModuleType | TypeVar)
                or foreign
            ):
                continue
            found[name][attribute] = signature(value) if callable(value) else None
    return found


if __name__ == "__main__":
    import bnbx.compat.bitsandbytes  # noqa: F401

    sys.stdout.write(json.dumps(describe()))
