"""Writes the measured part of docs/quality.md from the results in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from document import ROOT, MeasuredPart, figure
from quality_study import results

if TYPE_CHECKING:
    from pathlib import Path

STUDY = "quality.json"
EVIDENCE = MeasuredPart(
    ROOT / "docs" / "quality.md",
    "<!-- Study: `python benchmarks/quality_study --docs FOLDER` writes what follows. -->",
    "<!-- End of the study. -->",
)


def update(folder: Path) -> None:
    """Draw the figure into the folder and replace the measured part of the document."""
    from quality_study import plot  # tests of the rest need no matplotlib

    plot.draw(results.load(folder / STUDY), (folder / STUDY).with_suffix(".svg"))
    EVIDENCE.update(section(folder))
    print(f"{EVIDENCE.document} shows the results in {folder}")


def section(folder: Path) -> str:
    """Return the measured part: what the folder's file holds, in markdown; nothing without it."""
    if not (folder / STUDY).exists():
        return ""
    study = results.load(folder / STUDY)
    image = figure((folder / STUDY).with_suffix(".svg"), "Perplexity and divergence by size")
    tables = (table.text(markdown=True) for table in results.tables(study))
    return "\n\n".join([results.about(study), image, *tables])
