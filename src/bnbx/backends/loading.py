"""Loading the ``_ext`` modules, and saying why one did not load."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bnbx import ops
from bnbx.backends import reference
from bnbx.backends.paged_memory import PAGED_DEVICES
from bnbx.backends.registry import (
    BACKENDS,
    SWITCHED_OFF,
    Backend,
    device_of,
    dispatch_key,
    is_switched_off,
    method_of,
    without_autocast,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

    from bnbx.backends.metal import MetalBackend
    from bnbx.backends.native import NativeBackend
    from bnbx.backends.paged_memory import PagedDevices


#: What the process has mapped into its memory; Linux has it.
_MAPS = Path("/proc/self/maps")


class Found(NamedTuple):
    """The module of a device that fits the torch of this process.

    Attributes
    ----------
    module
        Its name in ``bnbx._ext``.
    backend
        Makes the backend of the module; calls the kernels on the stream of a tensor.
    paged
        Makes what paged optimizers need of the device, if it has that.
    details
        What ``python -m bnbx`` shows beside the module's own ``describe()``.
    """

    module: str
    backend: Callable[[ModuleType], NativeBackend | MetalBackend]
    paged: Callable[[ModuleType], PagedDevices] | None = None
    details: dict[str, Any] = {}  # noqa: RUF012 (nobody writes to it)


class OtherTorchError(LookupError):
    """The torch of this process has no such device, so that nobody has to be warned."""


def find_module(found: Found, kind: str, *, fits_torch: bool) -> Found | None:
    """Return what was given if the module is installed and torch is built for its devices.

    As ``Kernels.find`` wants it, for those that have one module.
    """
    is_installed = importlib.util.find_spec(f"bnbx._ext.{found.module}") is not None
    if fits_torch and is_installed:
        return found
    if fits_torch:
        raise LookupError("this bnbx was built without them")
    if is_installed:
        raise OtherTorchError(f"torch {torch.__version__} is built without {kind}")
    return None


def mapped_libraries(name: str, maps: str | None = None) -> list[str]:
    """Return the files of a shared library that the process has loaded, as Linux lists them.

    Streams and queues are objects of the library that made them: with two of one name in the
    process, those of torch mean nothing to the kernels.
    """
    if maps is None:
        maps = _MAPS.read_text() if _MAPS.exists() else ""
    return sorted(set(re.findall(rf"\S*/{re.escape(name)}\S*", maps)))


class Kernels(NamedTuple):
    """The compiled kernels of one kind of device.

    Attributes
    ----------
    name
        What ``COMPUTE_BACKEND`` calls them.
    device_type
        The torch device type whose tensors they serve.
    find
        Returns the module to load, or None if neither the package nor this torch is for the device,
        which then is not mentioned. Raises what says why there is none: ``OtherTorchError``, which
        is only shown; any other ``LookupError``, a warning when the device is used; ``ValueError``
        for a wish that cannot be met, a warning at once.
    """

    name: str
    device_type: str
    find: Callable[[], Found | None]

    @property
    def build(self) -> str:
        """What builds them."""
        option = "" if self.name == "cpu" else f" -Ccmake.define.COMPUTE_BACKEND={self.name}"
        return f"pip install .{option}"


def load(every: Iterable[Kernels]) -> None:
    """Load the kernels that fit this machine and its torch; the reference serves what is left."""
    missing: dict[str, Callable[[], None]] = {}
    for kernels in every:
        backend = _load(kernels, missing)
        if backend is not None:
            BACKENDS.append(backend)
    for name in ops.CONTRACTS:
        kernel = _saying_what_is_missing(getattr(reference, method_of(name)), missing)
        ops.register(name, kernel, "CompositeExplicitAutograd", native=False)
    BACKENDS.append(Backend("reference", "any", tuple(ops.CONTRACTS)))


def _load(kernels: Kernels, missing: dict[str, Callable[[], None]]) -> Backend | None:
    """Load one module; add to ``missing`` what warns of it when its device is used without."""
    try:
        found = kernels.find()
    except (LookupError, ValueError) as failure:
        reason = str(failure)
        if isinstance(failure, ValueError):
            _warn(kernels, reason)
        elif not isinstance(failure, OtherTorchError) and not is_switched_off():
            missing.setdefault(kernels.device_type, functools.partial(_warn, kernels, reason))
        return Backend(kernels.name, kernels.device_type, (), reason)
    if found is None:
        return None
    name = found.module.removeprefix("_")
    if is_switched_off():
        return Backend(name, kernels.device_type, (), SWITCHED_OFF)
    try:
        ext = importlib.import_module(f"bnbx._ext.{found.module}")
        details = {**ext.describe(), **found.details}
        backend = found.backend(ext)
    except Exception as failure:  # noqa: BLE001 (whatever is wrong with it, the import must go on)
        reason = f"{type(failure).__name__}: {failure}"
        _warn(kernels, reason)
        return Backend(name, kernels.device_type, (), reason)
    operations = tuple(ext.operations())
    for operation in operations:
        kernel, key = backend.kernel(method_of(operation)), dispatch_key(kernels.device_type)
        ops.register(operation, kernel, key)
    if found.paged is not None:
        PAGED_DEVICES[kernels.device_type] = found.paged(ext)
    return Backend(name, kernels.device_type, operations, details=details)


@functools.cache  # once is enough
def _warn(kernels: Kernels, reason: str) -> None:
    warnings.warn(
        f"bnbx runs without its {kernels.name.upper()} kernels, slowly, because {reason}. "
        f"Reinstall bnbx or build it with `{kernels.build}`; `python -m bnbx` shows details.",
        RuntimeWarning,
        stacklevel=3,
    )


def _saying_what_is_missing(
    kernel: Callable[..., Any], missing: dict[str, Callable[[], None]]
) -> Callable[..., Any]:
    """Return a kernel of the reference that warns at its first use on a device without kernels.

    Not before: many have a torch with CUDA, and no GPU to be slow on.
    """
    plain = without_autocast(kernel)

    def call(*args: Any, **kwargs: Any) -> Any:
        warn = missing.get(device_of(args) or "")
        if warn is not None:
            warn()
        return plain(*args, **kwargs)

    return call
