"""Packages that parts of bnbx need and its installation does not bring."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

#: Package -> the extra of bnbx that installs it.
EXTRAS = {"transformers": "cli", "matplotlib": "cli", "tqdm": "cli"}


class MissingPackageError(ImportError):
    """A package is needed that is not installed; the message says how to install it."""


def available(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def need(package: str, what_for: str) -> ModuleType:
    """Import a package.

    Parameters
    ----------
    package
        Its name, or that of a module in it.
    what_for
        What needs it, for the error.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    top = package.partition(".")[0]
    if not available(top):
        hint = f"the extra {EXTRAS[top]!r} of bnbx brings it"
        msg = f"{what_for} needs {top}, which is not installed; {hint}"
        raise MissingPackageError(msg, name=top)
    return importlib.import_module(package)
