"""Joins the .metal sources and the headers that they include into the one text that is compiled.

python metal_source.py OUT. A header is included once. Includes of the C++ library are left out:
Metal has what they declare. PyTorch hands the text to the compiler as ASCII.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
_INCLUDE = re.compile(r'#include (?:"(?P<own>[^"]+)"|<(?P<other>[^>]+)>)')


def bundled(source: Path, seen: set[Path]) -> list[str]:
    """Return the lines of a source with its includes in their places."""
    if source in seen:
        return []
    seen.add(source)
    lines = []
    for line in source.read_text(encoding="ascii").splitlines():
        include = _INCLUDE.match(line)
        if include is None:
            lines += [] if line == "#pragma once" else [line]
        elif include["own"]:
            lines += bundled(KERNELS / include["own"], seen)
        elif include["other"] == "metal_stdlib":
            lines.append(line)
    return lines


def main(out: str) -> None:
    """Write the text of all kernels."""
    seen: set[Path] = set()
    sources = sorted((KERNELS / "metal").glob("*.metal"))
    lines = [line for source in sources for line in bundled(source, seen)]
    Path(out).write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1])
