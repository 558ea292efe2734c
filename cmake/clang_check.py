"""Compiles the CUDA kernels with clang, for toolkits of which no nvcc can be had: only a check.

``clang_check.py FOLDER`` takes headers, libdevice and ptxas of the toolkit in the folder, which
``cuda_toolkit.py`` makes. Code for the device goes through ptxas; that of the host is only read.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))
#: As in kernels/cuda/CMakeLists.txt, but with less optimization, because ptxas takes most of the
#: time, and warnings are errors, but those on loops that clang leaves as they are, on a function
#: that libstdc++ itself uses, and on toolkits that are newer than this clang.
FLAGS = (
    *("-x", "cuda", "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-pass-failed", "-Wno-deprecated-declarations", "-Wno-unknown-cuda-version"),
    *(f"-I{ROOT / 'kernels'}", f"-I{ROOT / 'kernels' / 'include'}"),
)
#: As in the session cuda: with and without asynchronous copies.
ARCHITECTURES = ("sm_75", "sm_90")


def compiled(command: list[str]) -> bool:
    """Run the compiler, print what it says, and return whether it succeeded."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    sys.stderr.write(done.stderr)
    return not done.returncode


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the toolkit")
    parser.add_argument("--compiler", default="clang++")
    options = parser.parse_args()
    clang = [options.compiler, f"--cuda-path={options.folder}", *FLAGS]
    device = ("--cuda-device-only", "-c", "-o", os.devnull)
    commands = [
        [*clang, *mode, str(source)]
        for source in SOURCES
        for mode in (
            ("--cuda-host-only", "-fsyntax-only"),
            *((f"--cuda-gpu-arch={name}", *device) for name in ARCHITECTURES),
        )
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(compiled, commands))
    print(f"{done.count(True)} passed, {done.count(False)} failed")  # noqa: T201 (the result)
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
