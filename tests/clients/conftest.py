"""Other people's libraries with bnbx in the place of bitsandbytes.

``nox -s clients`` runs these tests where no bitsandbytes is installed. With
``BNBX_CLIENTS_LIBRARY=bitsandbytes`` they run on an installed bitsandbytes instead, to see whether
a test is right: it fails then only where bitsandbytes does.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import pytest

LIBRARY = os.environ.get("BNBX_CLIENTS_LIBRARY", "bnbx")
os.environ["HF_HUB_OFFLINE"] = "1"  # everything comes from installed packages or is made here
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if LIBRARY == "bnbx":
    if importlib.util.find_spec("bitsandbytes") is not None:
        raise pytest.UsageError("tests/clients: expected an environment without bitsandbytes")
    # Before any client asks whether there is a bitsandbytes.
    import bnbx.compat.bitsandbytes  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: What the clients warn of among themselves, before bnbx has any part in it.
FOREIGN_WARNINGS = ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def pytest_report_header() -> str:
    return f"bitsandbytes: {LIBRARY}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "clients":
            for warning in FOREIGN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a small model in float32, by its name in ``models``."""
    from tests.clients import models

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            models.save(name, made[name])
        return made[name]

    return get


@pytest.fixture
def bnb() -> Any:
    """The module that the clients import."""
    import bitsandbytes

    return bitsandbytes
