"""The measured parts of the documents: between two comments, a program writes what it measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class MeasuredPart:
    """A part of a document that is generated.

    Attributes
    ----------
    document
        The file.
    start, end
        The lines around the part; the first says what writes it.
    """

    document: Path
    start: str
    end: str

    def replaced(self, text: str, measured: str) -> str:
        """Return the document's text with another measured part."""
        before, start, rest = text.partition(self.start)
        _, end, after = rest.partition(self.end)
        if not start or not end:
            raise SystemExit(f"{self.document}: expected the lines\n{self.start}\n{self.end}")
        return f"{before}{start}\n\n{measured}\n\n{end}{after}"

    def update(self, measured: str) -> None:
        """Write the document with another measured part."""
        self.document.write_text(self.replaced(self.document.read_text(), measured))

    def shows(self, measured: str) -> bool:
        """Return whether the document has this measured part."""
        text = self.document.read_text()
        return self.replaced(text, measured) == text


def figure(file: Path, text: str) -> str:
    """Return a figure for a document in docs, in markdown."""
    return f"![{text}](../{file.resolve().relative_to(ROOT).as_posix()})"
