"""Unpacks packages of any of Debian's releases into a folder, without touching the system.

With apt's own programs, but lists and sources of their own: nothing is installed. For the scripts
beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = """\
Types: deb
URIs: {archive}
Suites: {release}
Components: main contrib non-free
Signed-By: {keys}
"""


def unpack(
    release: str, packages: Iterable[str], root: Path, architecture: str | None = None
) -> None:
    """Download packages of a release, not what they depend on, and unpack them into ``root``.

    For this machine, or for an architecture as Debian calls it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as name:
        work = Path(name)
        for folder in ("lists/partial", "packages"):
            (work / folder).mkdir(parents=True)
        sources = work / "debian.sources"
        sources.write_text(SOURCES.format(archive=_archive(), release=release, keys=KEYS))
        options = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": work / "lists",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Sandbox::User": "root",
        }
        if architecture:
            (work / "status").touch()  # what is installed here is of another
            options["Dir::State::status"] = work / "status"
            options["APT::Architecture"] = options["APT::Architectures"] = architecture
        apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
        _run([*apt, "update"], work)
        _run([*apt, "download", *packages], work / "packages")
        for package in (work / "packages").glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(root)], work)


def _archive() -> str:
    """Return where this machine takes Debian's packages from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    uris = [line for line in done.stdout.splitlines() if "security" not in line]
    if not uris:
        sys.exit("apt-get names no archive: expected a Debian whose sources list one")
    return uris[0]


def _run(command: list[str], folder: Path) -> None:
    """Run a program and stop with its message if it fails."""
    done = subprocess.run(  # noqa: S603 (apt and dpkg, with arguments of our own)
        command, cwd=folder, stdout=sys.stderr, check=False
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed with {done.returncode}")
