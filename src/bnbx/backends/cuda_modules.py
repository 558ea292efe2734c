"""Which of the installed CUDA modules serves the torch of this process.

A module brings the CUDA runtime of its toolkit with it, so no CUDA library has to match; only the
driver has to know the toolkit's version. A driver runs what any older toolkit has made and, except
PTX, what a newer one of its own major version has made. torch works on this driver, so its version
says what is safe: every module not newer than torch, and those of its major version.
"""

from __future__ import annotations

import os
import pkgutil
import re
from typing import TYPE_CHECKING, NamedTuple

import torch

from bnbx import _ext
from bnbx.backends.cuda import CudaBackend
from bnbx.backends.loading import Found, OtherTorchError
from bnbx.backends.paged_memory import PagedDevices
from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Forces the module of a toolkit: "13.0" or "130".
VARIABLE = "BNBX_CUDA_VERSION"

Version = tuple[int, int]


class Choice(NamedTuple):
    """The name of a module in ``bnbx._ext``, and why it is the one."""

    module: str
    why: str


def find() -> Found | None:
    """Return the best module for torch's CUDA; say why there is none if there could be one."""
    available = installed()
    if torch.version.cuda is None:
        if not available:
            return None
        # Who has CUDA kernels and a torch of another kind should learn that it is for torch.
        raise OtherTorchError(f"torch {torch.__version__} is built without CUDA")
    choice = choose(available, torch.version.cuda)
    toolkits = [f"cuda {major}.{minor}" for major, minor in reversed(available)]
    details = {"choice": choice.why, "available_isas": toolkits}
    return Found(choice.module, CudaBackend, PagedDevices, details)


def installed() -> list[Version]:
    """Return the toolkit versions of the modules that this package has, ascending."""
    found = (re.fullmatch(r"_cuda(\d\d)(\d+)", m.name) for m in pkgutil.iter_modules(_ext.__path__))
    return sorted((int(name[1]), int(name[2])) for name in found if name)


def choose(available: Iterable[Version], torch_cuda: str) -> Choice:
    """Return the best of the available modules for a torch built with that CUDA version.

    The newest that is not newer than torch's, else the nearest of the same major version.
    ``BNBX_CUDA_VERSION`` forces one.

    Raises
    ------
    ValueError
        If the one that is forced is not there.
    LookupError
        If none fits.
    """
    versions = sorted(available)
    of_torch = _read(torch_cuda) or (0, 0)
    forced = os.environ.get(VARIABLE)
    if forced:
        wanted = _read(forced)
        if wanted is None or wanted not in versions:
            expected = f"one of {_names(versions)}, which this bnbx has kernels for"
            raise error(VARIABLE, expected, repr(forced), "Unset it to have one chosen.")
        return _choice(wanted, f"forced by {VARIABLE}")
    older = [version for version in versions if version <= of_torch]
    newer = [version for version in versions if of_torch < version < (of_torch[0] + 1, 0)]
    if older:
        return _choice(older[-1], f"the newest not above torch's CUDA {torch_cuda}")
    if newer:
        return _choice(newer[0], f"the nearest to torch's CUDA {torch_cuda}")
    if not versions:
        raise LookupError("this bnbx was built without them")
    raise LookupError(
        f"they are for CUDA {_names(versions)}, torch is for {torch_cuda}, and its drivers need "
        f"not know newer ones. Take a newer torch, or set {VARIABLE} if the driver is new"
    )


def _read(text: str) -> Version | None:
    """Return the version that "13.0", "13.0.2" or "130" means, or None."""
    numbers = re.fullmatch(r"(\d\d)\.?(\d+)(\.\d+)?", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _choice(version: Version, why: str) -> Choice:
    return Choice(f"_cuda{version[0]}{version[1]}", why)


def _names(versions: Iterable[Version]) -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in versions) or "none"
