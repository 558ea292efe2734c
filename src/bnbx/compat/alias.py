"""Registering bnbx under the name bitsandbytes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bnbx.compat.finder import ModuleAlias, PackageAt

if TYPE_CHECKING:
    from types import ModuleType

NAME = "bitsandbytes"
#: The release of bitsandbytes whose names, formats and behaviour bnbx has.
COMPATIBLE_VERSION = "0.50.2"
#: A directory that could be an entry of ``sys.path``: the package and its metadata. Child processes
#: of ``python -m bnbx.compat`` have it there.
SITE = Path(__file__).parent / "site"
#: Not a ``.dist-info``: builders of wheels take that for the wheel's own.
_METADATA = SITE / f"{NAME}-{COMPATIBLE_VERSION}.egg-info"
#: What bitsandbytes and bnbx both have; it is bnbx's. The rest of the package is in ``SITE``.
SHARED = frozenset({"functional", "nn", "optim", "utils"})
#: Under this name bnbx's modules can be imported too, with no effect but that. Classes say that
#: they are from there once the alias is registered.
HOME = "bnbx.compat.as_bitsandbytes"

_FINDERS = (
    PackageAt(SITE / NAME, _METADATA),
    ModuleAlias(NAME, "bnbx", SHARED),
    ModuleAlias(f"bnbx.compat.{NAME}", NAME),
)


def install() -> ModuleType:
    """Register bnbx under the name bitsandbytes in this process, and return that module.

    Again is the same as once. A bitsandbytes that is installed but has not been imported is hidden
    from this process.

    Returns
    -------
    module
        ``bitsandbytes``, whose submodules are bnbx's.

    Raises
    ------
    ImportError
        If another bitsandbytes has been imported: parts of the program would go on using it.
    """
    _refuse_other()
    if _FINDERS[0] not in sys.meta_path:
        importlib.import_module("bnbx.compat.operators")
        sys.meta_path[:0] = _FINDERS
        importlib.import_module(NAME)
        importlib.import_module("bnbx.compat.old_names").add_old_names()
        _rename_classes()
    return importlib.import_module(NAME)


def _refuse_other() -> None:
    """Raise ImportError if another bitsandbytes is in use."""
    module = sys.modules.get(NAME)
    origin = getattr(module, "__file__", None)
    if module is None:
        if _FINDERS[0] in sys.meta_path or not hasattr(torch.ops.bitsandbytes, "quantize_4bit"):
            return
        origin = "a module that has been taken out of sys.modules; its operators are there"
    elif origin == str(SITE / NAME / "__init__.py"):
        return
    raise ImportError(
        f"{NAME}: expected not to be imported yet, got {origin}. Import bnbx.compat.{NAME} before "
        f"anything that imports {NAME}, or run the program with `python -m bnbx.compat`.",
        name=NAME,
    )


def _rename_classes() -> None:
    """Give the classes a ``__module__`` with the word bitsandbytes in it.

    transformers' Trainer looks for it in ``str(optimizer_cls)`` before it asks for 32-bit states of
    embeddings. The name is bnbx's still, so that a pickle made with the alias loads in any process
    that has bnbx, and never into the classes of bitsandbytes.
    """
    importlib.import_module(HOME)
    for name, module in list(sys.modules.items()):
        package, _, below = name.partition(".")
        if package != "bnbx" or below.partition(".")[0] not in {*SHARED, "autograd"}:
            continue
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == name:
                value.__module__ = f"{HOME}.{below}"
        # Who asks for a class's source or type hints looks its module up there.
        importlib.import_module(f"{HOME}.{below}")
