"""The measured parts of the documents: between two comments, a program writes what it measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from side_by_side.table import Table

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


@dataclasses.dataclass(frozen=True)
class StudyPart(MeasuredPart):
    """A part that shows a study: what it is about, a figure and tables.

    Attributes
    ----------
    results
        Name of the file with the study in a folder of results; the figure lies beside it.
    caption
        Of the figure.
    load
        Reads such a file.
    about, tables
        Say what the study is about, and what it has found.
    """

    results: str
    caption: str
    load: Callable[[Path], Any]
    about: Callable[[Any], str]
    tables: Callable[[Any], list[Table]]

    def section(self, folder: Path) -> str:
        """Return the part for a folder of results, in markdown; nothing without a study there."""
        file = folder / self.results
        if not file.exists():
            return ""
        study = self.load(file)
        image = figure(file.with_suffix(".svg"), self.caption)
        tables = (table.text(markdown=True) for table in self.tables(study))
        return "\n\n".join([self.about(study), image, *tables])

    def update_from(self, folder: Path, draw: Callable[[Any, Path], None]) -> None:
        """Draw the figure into a folder of results and write the document with its study."""
        file = folder / self.results
        draw(self.load(file), file.with_suffix(".svg"))
        self.update(self.section(folder))
        print(f"{self.document} shows the results in {folder}")
