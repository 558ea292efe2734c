"""Import hooks: modules under a second name, and a distribution that no installer has put there."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import DistributionFinder, PathDistribution
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import ModuleType


class ModuleAlias(MetaPathFinder, Loader):
    """Hands out the modules below one package for the same names below another.

    They are the same objects. Without this a package under a second name would import its
    submodules again: two classes of each name, and two managers of overrides.

    Parameters
    ----------
    alias
        The package under whose name they are imported.
    target
        The package that has them.
    children
        The modules directly below ``target`` that are meant, with all below them; None: all.
    """

    def __init__(self, alias: str, target: str, children: frozenset[str] | None = None) -> None:
        self.alias = alias
        self.target = target
        self.children = children

    def target_of(self, fullname: str) -> str | None:
        """Return the other name of a module, None if it is not one of those meant."""
        below = fullname.removeprefix(self.alias + ".")
        if below == fullname:
            return None
        if self.children is not None and below.partition(".")[0] not in self.children:
            return None
        return f"{self.target}.{below}"

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 (the import system's signature)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return where the module comes from, as the import system asks it."""
        real = self.target_of(fullname)
        found = None if real is None else importlib.util.find_spec(real)
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        spec = ModuleSpec(fullname, self, origin=found.origin, is_package=is_package)
        if is_package:
            spec.submodule_search_locations = found.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that exists."""
        real = self.target_of(spec.name)
        if real is None:
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
        module = importlib.import_module(real)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back, which the import system has just replaced."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


class PackageAt(DistributionFinder):
    """Finds one package, and the metadata that belong to it, in a directory off ``sys.path``.

    Parameters
    ----------
    package
        Directory of the package; its name is the package's and the distribution's.
    metadata
        The distribution's ``.dist-info`` or ``.egg-info`` directory.
    """

    def __init__(self, package: Path, metadata: Path) -> None:
        self.package = package
        self.metadata = metadata

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 (the import system's signature)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return where the package comes from, as the import system asks it."""
        if fullname != self.package.name:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            self.package / "__init__.py",
            submodule_search_locations=[str(self.package)],
        )

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008
    ) -> Iterable[PathDistribution]:
        """Return the distribution, if it is asked for or all are.

        Parameters
        ----------
        context
            What is asked for. With a ``path`` it is what lies in certain directories.
        """
        name = self.package.name if context.name is None else context.name.lower()
        if "path" not in vars(context) and name == self.package.name:
            yield PathDistribution(self.metadata)
