"""Which kernels serve which device: loading the ``_ext`` modules, and why one did not load."""

from __future__ import annotations

import dataclasses
import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx import ops
from bnbx.backends import reference
from bnbx.backends.cpu import CpuBackend
from bnbx.backends.native_grouped import NativeGroupedBackend

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Backend:
    """One backend as ``python -m bnbx`` shows it.

    Attributes
    ----------
    name
        Name of the ``_ext`` module without the underscore, or ``"reference"``.
    device_type
        The torch device type that it serves; ``"any"`` for the reference.
    operations
        Names of the operations that it implements. Empty if it is not loaded.
    reason
        Why it is not loaded; empty if it is.
    details
        What the module says about itself: the instruction set or toolkit chosen and available.
    """

    name: str
    device_type: str
    operations: tuple[str, ...]
    reason: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def _without_outputs(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the reference's kernel, which allocates its outputs itself, without autocast.

    What an operation computes in follows from its arguments. Autocast would reach the products of
    the reference and give them another dtype than the contract says.
    """

    def call(_: Any, *args: Any, **kwargs: Any) -> Any:
        device = next((a.device.type for a in args if isinstance(a, Tensor)), None)
        if device is None or not torch.is_autocast_enabled(device):
            return kernel(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return kernel(*args, **kwargs)

    return call


def _method(name: str) -> str:
    return name.replace(".", "_")


def _register_reference() -> Backend:
    for name in ops.CONTRACTS:
        kernel = getattr(reference, _method(name))
        ops.register(name, _without_outputs(kernel), "CompositeExplicitAutograd")
    return Backend("reference", "any", tuple(ops.CONTRACTS))


def _load_cpu() -> Backend:
    # The tests of the kernels for GPUs run them in an emulator, on tensors of the CPU.
    name = "simt" if os.environ.get("BNBX_SIMT") == "1" else "cpu"
    if os.environ.get("BNBX_REFERENCE") == "1":
        return Backend(name, "cpu", (), "switched off by BNBX_REFERENCE=1")
    try:
        ext = importlib.import_module(f"bnbx._ext._{name}")
        details = ext.describe()
        backend = CpuBackend(ext) if name == "cpu" else NativeGroupedBackend(ext, lambda _: 0)
    except Exception as failure:  # noqa: BLE001 (whatever is wrong with it, the import must go on)
        reason = f"{type(failure).__name__}: {failure}"
        warnings.warn(
            f"bnbx runs without its CPU kernels, slowly, because {reason}. "
            "Reinstall bnbx or build it with `pip install .`; `python -m bnbx` shows details.",
            RuntimeWarning,
            stacklevel=2,
        )
        return Backend(name, "cpu", (), reason)
    for operation in ext.operations():
        ops.register(operation, getattr(backend, _method(operation)), "CPU")
    return Backend(name, "cpu", tuple(ext.operations()), details=details)


#: Every backend of this installation, loaded or not.
BACKENDS: tuple[Backend, ...] = (_load_cpu(), _register_reference())
