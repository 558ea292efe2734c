"""Registers, spills and shared memory of the CUDA kernels, as ``-Xptxas -v`` prints them.

``record COMMAND...`` runs a compiler and keeps what it says beside the object that it writes; CMake
calls it so with ``-DBNBX_KERNEL_RESOURCES=ON``. ``table BUILD_FOLDER`` makes a table of it, which
``--into`` puts into a document.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Beside each object.
SUFFIX = ".resources"
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
HEADER = ["source", "kernel", "variants", "registers", "spilled bytes", "static shared bytes"]


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one variant of a kernel takes: per thread, and shared memory per block."""

    source: str
    name: str
    architecture: str
    registers: int
    spills: int
    shared: int


def record(command: list[str]) -> int:
    """Run a compiler; write its messages on kernels to a file and all others to stderr."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    lines = done.stderr.splitlines(keepends=True)
    kept = [line for line in lines if "ptxas info" in line or "bytes stack frame" in line]
    if "-o" in command and kept:
        Path(command[command.index("-o") + 1] + SUFFIX).write_text("".join(kept))
        lines = [line for line in lines if line not in kept]
    sys.stderr.write("".join(lines))
    return done.returncode


def parse(source: str, text: str) -> Iterator[Usage]:
    """Yield what each kernel of a source takes, from ptxas' messages; names are mangled."""
    entry, spills = None, 0
    for line in text.splitlines():
        if found := ENTRY.search(line):
            entry, spills = found, 0
        elif found := SPILLS.search(line):
            spills = int(found[1]) + int(found[2])
        elif entry and (found := USED.search(line)):
            shared = SHARED.search(line)
            shared_bytes = int(shared[1]) if shared else 0
            yield Usage(source, entry[1], entry[2], int(found[1]), spills, shared_bytes)
            entry = None


def plain(name: str) -> str:
    """Return the name without namespaces and arguments: f of ``void bnbx::f<4>(int)``."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.sub(r"[<(].*", "", name).rpartition("::")[2]


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Return readable names, by mangled ones."""
    ordered = sorted(set(names))
    text = "\n".join(ordered)
    command = [shutil.which("c++filt") or "c++filt"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)  # noqa: S603
    return dict(zip(ordered, done.stdout.splitlines(), strict=True))


def rows(usages: list[Usage]) -> list[list[str]]:
    """Return a row for each kernel: the range over its variants and architectures."""
    names = demangled(u.name for u in usages)
    kernels = collections.defaultdict(list)
    for usage in usages:
        kernels[usage.source, plain(names[usage.name])].append(usage)
    return [
        [
            source,
            f"`{kernel}`",
            str(len({u.name for u in found})),
            _range(u.registers for u in found),
            _range(u.spills for u in found),
            _range(u.shared for u in found),
        ]
        for (source, kernel), found in sorted(kernels.items())
    ]


def _range(values: Iterable[int]) -> str:
    found = sorted(values)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def table(folder: Path, architecture: str | None) -> str:
    """Return the table of all kernels that were recorded in a folder, in markdown."""
    files = sorted(folder.rglob(f"*{SUFFIX}"))
    usages = [u for file in files for u in parse(file.name.partition(".")[0], file.read_text())]
    if architecture:
        usages = [u for u in usages if u.architecture == architecture]
    if not usages:
        raise SystemExit(f"{folder}: no kernels; configure with -DBNBX_KERNEL_RESOURCES=ON")
    lines = [HEADER, ["--", "--", *["--:"] * (len(HEADER) - 2)], *rows(usages)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put_into(document: Path, lines: str) -> None:
    """Replace the table of a document, which has the same header."""
    header = f"| {' | '.join(HEADER)} |\n"
    text = document.read_text()
    before, found, rest = text.partition(header)
    if not found:
        raise SystemExit(f"{document}: expected a table with the header\n{header}")
    after = re.sub(r"\A(\|.*\n)*", "", rest)
    document.write_text(f"{before}{lines}\n{after}")


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1:2] == ["record"]:
        return record(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["table"])
    parser.add_argument("folder", type=Path, help="where CMake has built")
    parser.add_argument("--architecture", metavar="90", help="of this one only")
    parser.add_argument("--into", type=Path, metavar="DOCUMENT", help="instead of printing it")
    options = parser.parse_args()
    lines = table(options.folder, options.architecture)
    if options.into:
        put_into(options.into, lines)
    else:
        print(lines)  # noqa: T201 (what it is for)
    return 0


if __name__ == "__main__":
    sys.exit(main())
