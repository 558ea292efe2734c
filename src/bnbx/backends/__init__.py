"""Which kernels serve which device: loading the ``_ext`` modules, and why one did not load."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx import ops
from bnbx.backends import cuda_modules, metal, reference
from bnbx.backends.cpu import CpuBackend
from bnbx.backends.cuda import CudaBackend
from bnbx.backends.native_grouped import NativeGroupedBackend
from bnbx.backends.paged_memory import PAGED_DEVICES, PagedDevices

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from bnbx.backends.metal import MetalBackend
    from bnbx.backends.native import NativeBackend

#: What builds the kernels of a device.
_BUILD = {
    "cpu": "pip install .",
    "cuda": "pip install . -Ccmake.define.COMPUTE_BACKEND=cuda",
    "mps": "pip install . -Ccmake.define.COMPUTE_BACKEND=metal",
}


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
        What the module says about itself: the instruction set or toolkit chosen and available. For
        CUDA also ``choice``: why this toolkit.
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
        if device == "cuda":
            _warn_of_missing_cuda()
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


def _is_switched_off() -> bool:
    return os.environ.get("BNBX_REFERENCE") == "1"


def _load(
    module: str,
    device: str,
    backend_of: Callable[[ModuleType], NativeBackend | MetalBackend],
    **details: Any,
) -> Backend:
    """Load a module of ``bnbx._ext`` and register its operations; on failure warn and go on."""
    name = module.removeprefix("_")
    if _is_switched_off():
        return Backend(name, device, (), "switched off by BNBX_REFERENCE=1")
    try:
        ext = importlib.import_module(f"bnbx._ext.{module}")
        details = {**ext.describe(), **details}
        backend = backend_of(ext)
    except Exception as failure:  # noqa: BLE001 (whatever is wrong with it, the import must go on)
        reason = f"{type(failure).__name__}: {failure}"
        _warn(device, reason)
        return Backend(name, device, (), reason)
    if device == "cuda":
        PAGED_DEVICES[device] = PagedDevices(ext)
    key = device.upper()
    for operation in ext.operations():
        ops.register(operation, backend.kernel(_method(operation)), key)
    return Backend(name, device, tuple(ext.operations()), details=details)


def _load_cpu() -> Backend:
    # The tests of the kernels for GPUs run them in an emulator, on tensors of the CPU.
    if os.environ.get("BNBX_METAL_EMULATOR") == "1":
        return _load("_metal_emulator", "cpu", metal.emulated)
    if os.environ.get("BNBX_SIMT") == "1":
        return _load("_simt", "cpu", lambda ext: NativeGroupedBackend(ext, lambda _: 0))
    return _load("_cpu", "cpu", CpuBackend)


@functools.cache  # once is enough
def _warn(device: str, reason: str) -> None:
    warnings.warn(
        f"bnbx runs without its {device.upper()} kernels, slowly, because {reason}. "
        f"Reinstall bnbx or build it with `{_BUILD[device]}`; `python -m bnbx` shows details.",
        RuntimeWarning,
        stacklevel=3,
    )


def _warn_of_missing_cuda() -> None:
    """Warn at the first use: many have a torch with CUDA, and no GPU to be slow on."""
    for backend in BACKENDS:
        if backend.device_type == "cuda" and backend.reason and not _is_switched_off():
            _warn("cuda", backend.reason)


def _load_cuda() -> tuple[Backend, ...]:
    """Load the best module for torch's CUDA, and say why there is none if there could be one."""
    available = cuda_modules.installed()
    if torch.version.cuda is None:
        # Who has CUDA kernels and a torch of another kind should learn that it is for torch.
        reason = f"torch {torch.__version__} is built without CUDA"
        return (Backend("cuda", "cuda", (), reason),) if available else ()
    try:
        choice = cuda_modules.choose(available, torch.version.cuda)
    except (ValueError, LookupError) as failure:
        if isinstance(failure, ValueError):
            _warn("cuda", str(failure))
        return (Backend("cuda", "cuda", (), str(failure)),)
    toolkits = [f"cuda {major}.{minor}" for major, minor in reversed(available)]
    details = {"choice": choice.why, "available_isas": toolkits}
    return (_load(choice.module, "cuda", CudaBackend, **details),)


def _load_metal() -> tuple[Backend, ...]:
    if importlib.util.find_spec("bnbx._ext._metal") is None:
        return ()
    return (_load("_metal", "mps", metal.MetalBackend),)


#: Every backend of this installation, loaded or not.
BACKENDS: tuple[Backend, ...] = (
    _load_cpu(),
    *_load_cuda(),
    *_load_metal(),
    _register_reference(),
)
