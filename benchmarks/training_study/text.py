"""The text: English that comes with every Python, the docstrings and help topics of its library.

It needs no network, its license is Python's own, and one Python version has the same text
everywhere.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import platform
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Folders of the library that are installed software, tests, or no prose of their own.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
#: Shorter docstrings, in characters, are left out: most are the same few sentences.
SHORTEST = 100
#: Of 256: the share of documents that is held out.
HELD_OUT = 26

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Text:
    """Bytes to train on and bytes that are held out, as uint8 tensors."""

    training: torch.Tensor
    held_out: torch.Tensor

    def about(self) -> dict[str, Any]:
        """Return what identifies the text."""
        digest = hashlib.sha256()
        for part in (self.training, self.held_out):
            digest.update(bytes(part.tolist()))
        return {
            "python": platform.python_version(),
            "training_bytes": self.training.numel(),
            "held_out_bytes": self.held_out.numel(),
            "sha256": digest.hexdigest(),
        }


def load() -> Text:
    """Return the text, split by document; no paragraph stands twice or on both sides."""
    sides: tuple[list[str], list[str]] = ([], [])
    for name, document in documents():
        held_out = hashlib.sha256(name.encode()).digest()[0] < HELD_OUT
        sides[held_out].append(document)
    seen: set[str] = set()
    # Training comes first: what is held out is then new to the model.
    return Text(*(_encoded(_new_paragraphs(side, seen)) for side in sides))


def documents() -> Iterator[tuple[str, str]]:
    """Yield name and text of each help topic and of each module's docstrings, in a fixed order."""
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from sorted(topics.items())
    root = Path(sysconfig.get_path("stdlib"))
    files = {file.relative_to(root): file for file in root.rglob("*.py")}
    for path, file in sorted(files.items()):
        if not LEFT_OUT & set(path.parts):
            yield path.as_posix(), "\n\n".join(_docstrings(file.read_bytes()))


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # templates, and files for another version of Python
        return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST:
                yield text


def _new_paragraphs(texts: list[str], seen: set[str]) -> Iterator[str]:
    for text in texts:
        for paragraph in text.split("\n\n"):
            if (stripped := paragraph.strip()) and stripped not in seen:
                seen.add(stripped)
                yield paragraph.rstrip()


def _encoded(paragraphs: Iterator[str]) -> torch.Tensor:
    encoded = "\n\n".join(paragraphs).encode()
    return torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
