"""Unpacks a Python for 64-bit Arm Linux into a folder, to load a wheel in it under qemu.

``aarch64_python.py FOLDER`` takes Debian's packages without touching the system: the interpreter,
its library and what they need of others beside the C library.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import debian_packages

PACKAGES = (
    "libexpat1",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    "zlib1g",
)


def main() -> None:
    """Unpack the packages into the folder of the command line, in place of what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    debian_packages.unpack("bookworm", PACKAGES, folder, "arm64")


if __name__ == "__main__":
    main()
