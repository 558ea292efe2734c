"""Programs in processes of their own: an alias stays in the process that registers it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: A directory for ``sys.path`` with a package that stands for the bitsandbytes of the index.
OTHER = '__version__ = "9.9.9"\n'
REGISTERED = "import bnbx.compat.bitsandbytes\n"


def python(*arguments: str, cwd: Path | None = None, **env: str) -> str:
    """Run Python and return its stdout."""
    done = subprocess.run(  # noqa: S603 (our own programs)
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(code: str, **env: str) -> str:
    """Run code in a fresh interpreter with warnings as errors, and return its stdout."""
    return python("-W", "error", "-c", code, **env)


def other_bitsandbytes(directory: Path, version: str = "9.9.9") -> str:
    """Put another bitsandbytes into a directory, and return what to have in PYTHONPATH for it."""
    package = directory / "bitsandbytes"
    package.mkdir()
    package.joinpath("__init__.py").write_text(OTHER)
    metadata = directory / f"bitsandbytes-{version}.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: bitsandbytes\nVersion: {version}\n"
    )
    return os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
