"""The documents of the repository, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def name(document: Path) -> str:
    """A document's path in the repository, for the names of tests."""
    return document.relative_to(ROOT).as_posix()
