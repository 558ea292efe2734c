"""Defining an operation, registering its kernels, and the error that its checks raise."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = torch.library.Library("bnbx", "DEF")  # noqa: TOR901 (it lives as long as the process)

#: Name of each operation (with overload) -> its contract.
CONTRACTS: dict[str, Callable[..., Any]] = {}


def operation(
    schema: str, fake: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define ``bnbx::<schema>`` with the decorated function as its contract.

    The contract is the fake kernel too, unless ``fake`` is given, for outputs sized by the data.
    """

    def define(contract: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"bnbx::{name}", fake or contract, lib=LIBRARY)
        CONTRACTS[name] = contract
        return contract

    return define


def register(name: str, kernel: Callable[..., Any], dispatch_key: str) -> None:
    """Register ``kernel`` for ``bnbx::<name>``, with the contract's checks in front of it."""
    contract = CONTRACTS[name]

    @functools.wraps(kernel)
    def checked(*args: Any, **kwargs: Any) -> Any:
        return kernel(contract(*args, **kwargs), *args, **kwargs)

    LIBRARY.impl(name, checked, dispatch_key)


def error(argument: str, expected: object, got: object, hint: str = "") -> ValueError:
    """Return the error of a check: the argument, what was expected, what came, what to do."""
    return ValueError(f"{argument}: expected {expected}, got {got}" + (f". {hint}" if hint else ""))
