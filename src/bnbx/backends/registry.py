"""The backends of this process, and the entry point for those of other packages."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx import ops
from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Backend:
    """One backend as ``python -m bnbx`` shows it.

    Attributes
    ----------
    name
        Name of the ``_ext`` module without the underscore, ``"reference"``, or what ``register``
        was given.
    device_type
        The torch device type that it serves; ``"any"`` for the reference.
    operations
        Names of the operations that it implements. Empty if it is not loaded.
    reason
        Why it is not loaded; empty if it is.
    details
        What the module says about itself: the instruction set or toolkit chosen and available. For
        CUDA also ``choice``: why this toolkit.
    """

    name: str
    device_type: str
    operations: tuple[str, ...]
    reason: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


#: Every backend of this process, loaded or not; the last one is the reference.
BACKENDS: list[Backend] = []
#: The reason of those that are loaded otherwise.
SWITCHED_OFF = "switched off by BNBX_REFERENCE=1"
#: What ``register`` has made, by device type, and its functions in the dispatcher.
_REGISTERED: dict[str, tuple[Backend, torch.library.Library]] = {}


def is_switched_off() -> bool:
    """Return whether the reference shall serve every device."""
    return os.environ.get("BNBX_REFERENCE") == "1"


def method_of(operation: str) -> str:
    """Return the name of the function that implements an operation: overloads have no dots."""
    return operation.replace(".", "_")


def dispatch_key(device_type: str) -> str:
    """Return the dispatcher's name of a device type, such as ``PrivateUse1`` for a renamed one."""
    key: str = torch._C._dispatch_key_for_device(device_type)  # noqa: SLF001
    return key


def without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that is made of PyTorch's operations, without autocast.

    What an operation computes in follows from its arguments. Autocast would reach the products in
    the kernel and give them another dtype than the contract says.
    """

    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        device = device_of(args)
        if device is None or not torch.is_autocast_enabled(device):
            return kernel(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return kernel(*args, **kwargs)

    return call


def device_of(args: tuple[Any, ...]) -> str | None:
    """Return the type of the device of the first tensor of a call, also of one in a list."""
    for arg in args:
        if isinstance(arg, Tensor):
            return arg.device.type
        if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor):
            return arg[0].device.type
    return None


def register(device_type: str, implementation: Any, *, name: str | None = None) -> Backend:
    """Let an implementation of some operations serve the tensors of a device type.

    Operations that it does not have are served by the PyTorch reference, as on every device.

    Parameters
    ----------
    device_type
        A device type that torch knows, such as ``"hpu"``, or that
        ``torch.utils.rename_privateuse1_backend`` has named, such as ``"npu"``.
    implementation
        A module or an object. Each public function that it defines implements the operation of its
        name (``python -m bnbx`` lists them) and has the operation's parameters; a dot in the name
        is an underscore (``dequantize_4bit_out``). It returns its results on the device, and may
        rely on its arguments: they have been checked, and tensors are on one device. Tensors may
        have strides. Names that begin with an underscore, and functions that a module imports, are
        ignored.
    name
        The backend's name in messages and in ``python -m bnbx``; the device type by default.

    Returns
    -------
    Backend
        What is registered now, also in ``BACKENDS``.

    Raises
    ------
    ValueError
        If torch does not know the device type, another backend serves it or has the name, a
        function is not named like an operation, its parameters are not the operation's, or there
        is none.
    """
    _check_device_type(device_type)
    name = device_type if name is None else name
    if any(backend.name == name for backend in BACKENDS):
        raise error("name", "a name that no backend has yet", repr(name))
    functions = _functions_of(implementation)
    library = torch.library.Library("bnbx", "FRAGMENT")  # noqa: TOR901 (kept until unregister)
    backend = Backend(name, device_type, tuple(functions))
    if is_switched_off():
        backend = Backend(name, device_type, (), SWITCHED_OFF)
    for operation in backend.operations:
        kernel, key = without_autocast(functions[operation]), dispatch_key(device_type)
        ops.register(operation, kernel, key, library=library, native=False)
    _REGISTERED[device_type] = backend, library
    BACKENDS.insert(-1, backend)
    return backend


def unregister(device_type: str) -> None:
    """Undo ``register``: from now on the PyTorch reference serves the device type.

    Raises
    ------
    ValueError
        If ``register`` has not been called for the device type.
    """
    if device_type not in _REGISTERED:
        expected = f"one that register was given, of {tuple(_REGISTERED)}"
        raise error("device_type", expected, repr(device_type))
    backend, library = _REGISTERED.pop(device_type)
    BACKENDS.remove(backend)
    library._destroy()  # noqa: SLF001


def _check_device_type(device_type: str) -> None:
    try:
        known = torch.device(device_type)
    except RuntimeError as failure:
        expected = "a device type that this torch knows"
        hint = "Name it first, with torch.utils.rename_privateuse1_backend."
        raise error("device_type", expected, repr(device_type), hint) from failure
    if known.index is not None or known.type == "meta":
        expected = "the type of a device that holds data, without an index"
        raise error("device_type", expected, repr(device_type))
    for backend in BACKENDS:
        if backend.device_type == device_type and not backend.reason:
            expected = "a device type that no other backend serves"
            got = f"{device_type!r}, which {backend.name!r} serves"
            raise error("device_type", expected, got)


def _functions_of(implementation: Any) -> dict[str, Callable[..., Any]]:
    """Return the function of each operation that a module or an object implements."""
    operations = {method_of(name): name for name in ops.CONTRACTS}
    found = {}
    for name, function in inspect.getmembers(implementation, callable):
        is_import = inspect.ismodule(implementation) and name not in operations
        if name.startswith("_") or (is_import and function.__module__ != implementation.__name__):
            continue
        if name not in operations:
            close = difflib.get_close_matches(name, operations, 1)
            hint = f"Did you mean {close[0]}? " if close else ""
            hint += "Names of helpers begin with an underscore."
            expected = "functions named like an operation of bnbx"
            raise error("implementation", expected, repr(name), hint)
        _check_parameters(name, function, operations[name])
        found[operations[name]] = function
    if not found:
        expected = "at least one function named like an operation, such as gemm_4bit"
        raise error("implementation", expected, f"none in {implementation!r}")
    return {name: found[name] for name in ops.CONTRACTS if name in found}


def _check_parameters(name: str, function: Callable[..., Any], operation: str) -> None:
    """Raise unless a function can be called with the arguments of an operation, in their order."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, without one
        return
    wanted = inspect.signature(ops.CONTRACTS[operation]).parameters.values()
    by_name = [p.name for p in wanted if p.kind is p.KEYWORD_ONLY]
    in_order = [p.name for p in wanted if p.name not in by_name]
    own = signature.parameters.values()
    named = [p.name for p in own if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    try:
        signature.bind(*in_order, **dict.fromkeys(by_name))
        fits = named[: len(in_order)] == in_order[: len(named)]
    except TypeError:
        fits = False
    if not fits:
        expected = f"the parameters ({', '.join([*in_order, *('*, ' + n for n in by_name)])})"
        raise error(f"implementation.{name}", expected, signature)
