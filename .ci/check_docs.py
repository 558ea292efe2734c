"""Checks the documents: relative links lead to files, and the Python blocks for users run."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")
#: Documents whose blocks run; those marked ``py`` in place of ``python`` are fragments.
FOR_USERS = (ROOT / "README.md", ROOT / "docs" / "optimizers.md")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def dead_links(document: Path) -> list[str]:
    """Return the document's relative links that lead nowhere."""
    targets = (t for t in LINK.findall(document.read_text()) if "://" not in t)
    return [t for t in targets if not (document.parent / t).exists()]


def failing_blocks(document: Path) -> list[str]:
    """Run each Python block as a program of its own and return the output of those that fail."""
    failures = []
    for number, block in enumerate(PYTHON_BLOCK.findall(document.read_text()), start=1):
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run(
                [sys.executable, "-c", block],
                cwd=directory,
                capture_output=True,
                text=True,
                check=False,
            )
        print(f"{document.name}, block {number}: exit status {done.returncode}")
        if done.returncode:
            failures.append(f"{document.name}, block {number}:\n{done.stderr}")
    return failures


def main() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    problems = [f"{d}: no such file: {link}" for d in documents for link in dead_links(d)]
    problems += [problem for document in FOR_USERS for problem in failing_blocks(document)]
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"{len(documents)} documents: every relative link and every block is good")


if __name__ == "__main__":
    main()
