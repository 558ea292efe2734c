"""Output that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Bytes left free on the disk: for directories and for what else writes there.
SPARE = 16 << 20


@contextlib.contextmanager
def staged(path: Path, *, as_file: bool) -> Iterator[Path]:
    """Yield a new directory beside ``path``, which takes its name when the block has ended well.

    A killed process leaves a directory ``.<name>.bnbx-*`` behind, and nothing under ``path``.

    Parameters
    ----------
    path
        What is to appear. Its parent exists.
    as_file
        Whether that is the file of the same name in the directory.

    Raises
    ------
    ValueError
        If there is something at ``path``, before or after, or if its parent is no directory.
    """
    check_new(path)
    # Beside it, so that the last step is a rename within one file system.
    stage = path.parent / f".{path.name}.bnbx-{secrets.token_hex(4)}"
    stage.mkdir()
    try:
        yield stage
        sync_directory(stage)
        check_new(path)
        (stage / path.name if as_file else stage).rename(path)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    # It is there: what fails now is no failure.
    with contextlib.suppress(OSError):
        sync_directory(path.parent)
        if as_file:
            stage.rmdir()


def check_new(path: Path) -> None:
    """Raise unless there is nothing at ``path`` and its parent is a directory."""
    if os.path.lexists(path):
        raise error("dst", "a path where there is nothing", f"{path}, which exists")
    if not path.parent.is_dir():
        raise error("dst", "a path in a directory that exists", path)


def check_space(parent: Path, needed: int) -> None:
    """Raise unless the disk of a directory has room for so many bytes."""
    free = shutil.disk_usage(parent).free
    if free < needed + SPARE:
        expected = f"a disk with {needed + SPARE} bytes free"
        raise error("dst", expected, f"{free} bytes free at {parent}")


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a small new file and bring it to the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, path: Path) -> None:
    """Copy a file to a new one and bring it to the disk."""
    with source.open("rb") as old, path.open("xb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
