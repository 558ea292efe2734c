"""Puts the device libraries of ROCm into a folder, for the session that builds for AMD GPUs.

``hip_device_libraries.py FOLDER`` takes those of a newer Debian than most machines have: LLVM
bitcode, which Clang 19 links into kernels, goes to ``FOLDER/bitcode``, and what CMake wants to find
of them beside it. Nothing is installed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import debian_packages

#: Debian's release and package; its bitcode is LLVM 17's, which newer ones read.
RELEASE, PACKAGE = "trixie", "rocm-device-libs-17"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made; kept if it is there")
    folder = parser.parse_args().folder.absolute()
    if folder.exists():
        return
    root = folder.with_name(folder.name + "-debian")
    shutil.rmtree(root, ignore_errors=True)
    debian_packages.unpack(RELEASE, (PACKAGE,), root)
    folder.mkdir()
    for name in ("AMDDeviceLibs", "bitcode"):
        (found,) = root.rglob(name)
        found.rename(folder / name)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
