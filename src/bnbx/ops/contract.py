"""Defining an operation, registering its kernels, and the error that its checks raise."""

from __future__ import annotations

import abc
import functools
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = torch.library.Library("bnbx", "DEF")  # noqa: TOR901 (it lives as long as the process)

#: Name of each operation (with overload) -> its contract.
CONTRACTS: dict[str, Callable[..., Any]] = {}


class Unchecked(abc.ABC):
    """What a contract returns, in the place of outputs, if there are lists of tensors to check.

    Native kernels get it and check each tensor as they read it; for all others, and for the fake
    kernel, ``check`` is called before.
    """

    @abc.abstractmethod
    def check(self) -> None:
        """Raise ``ValueError`` naming the first tensor that is wrong."""


def operation(
    schema: str,
    fake: Callable[..., Any] | None = None,
    vmap: Callable[..., tuple[Any, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define ``bnbx::<schema>`` with the decorated function as its contract.

    The contract is the fake kernel too, unless ``fake`` is given, for outputs sized by the data.
    ``vmap`` is one of the rules in ``batching``, which get the operation before torch's arguments.
    That its tensors are on one device is checked here and in ``register``, not by the contract.
    """

    def define(contract: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        checked = _with_every_check(fake or contract)
        torch.library.register_fake(f"bnbx::{name}", checked, lib=LIBRARY)
        if vmap is not None:
            rule = functools.partial(vmap, getattr(torch.ops.bnbx, name).default)
            torch.library.register_vmap(f"bnbx::{name}", rule, lib=LIBRARY)
        CONTRACTS[name] = contract
        return contract

    return define


def register(
    name: str,
    kernel: Callable[..., Any],
    dispatch_key: str,
    *,
    library: torch.library.Library = LIBRARY,
    native: bool = True,
) -> None:
    """Register ``kernel`` for ``bnbx::<name>``, with the contract's checks in front of it.

    A native kernel gets what the contract returns, then the arguments. Others get the arguments
    alone, when lists have been checked too, and allocate what they return.
    """
    contract = CONTRACTS[name]
    # The dispatcher takes the CPU's kernel only if no argument is a tensor of another device: the
    # CPU comes last in its order. Every other kernel gets what it gets.
    if not native:
        contract = _with_every_check(contract)
    elif dispatch_key != "CPU":
        contract = _on_one_device(contract)

    def filled(*args: Any) -> Any:
        return kernel(contract(*args), *args)

    def filled_out(*args: Any, out: Tensor) -> None:  # the one keyword that a schema may have
        kernel(contract(*args, out=out), *args, out=out)

    def checked(*args: Any) -> Any:
        contract(*args)
        return kernel(*args)

    def checked_out(*args: Any, out: Tensor) -> None:
        contract(*args, out=out)
        kernel(*args, out=out)

    if name.endswith(".out"):
        library.impl(name, filled_out if native else checked_out, dispatch_key)
    else:
        library.impl(name, filled if native else checked, dispatch_key)


def _with_every_check(contract: Callable[..., Any]) -> Callable[..., Any]:
    """Return the contract with the checks that the kernels of a CPU can do without.

    All tensors are on the device of the first argument, if that is a tensor; those in lists are
    what ``Unchecked.check`` wants.
    """
    on_one_device = _on_one_device(contract)

    def checked(*args: Any, **kwargs: Any) -> Any:
        result = on_one_device(*args, **kwargs)
        if not isinstance(result, Unchecked):
            return result
        result.check()
        return None

    return checked


def _on_one_device(contract: Callable[..., Any]) -> Callable[..., Any]:
    """Return the contract with a check that the tensors are on the device of the first argument."""
    names = tuple(inspect.signature(contract).parameters)

    def checked(*args: Any, **kwargs: Any) -> Any:
        if isinstance(args[0], Tensor):
            device = args[0].device
            for argument, value in (*zip(names, args, strict=False), *kwargs.items()):
                if isinstance(value, Tensor) and value.device != device:
                    raise wrong_device(argument, value, device)
        return contract(*args, **kwargs)

    return checked


def error(argument: str, expected: object, got: object, hint: str = "") -> ValueError:
    """Return the error of a check: the argument, what was expected, what came, what to do."""
    return ValueError(f"{argument}: expected {expected}, got {got}" + (f". {hint}" if hint else ""))


def wrong_device(argument: str, tensor: Tensor, expected: torch.device) -> ValueError:
    """Return the error of a tensor that is on another device than it has to be."""
    return error(argument, f"a tensor on {expected}", tensor.device, "Move it with .to(device).")
