"""Writes the measured part of docs/optimizers.md from the results in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from document import ROOT, MeasuredPart, figure
from training_study import table
from training_study.results import load

if TYPE_CHECKING:
    from pathlib import Path

STUDY = "training_study.json"
EVIDENCE = MeasuredPart(
    ROOT / "docs" / "optimizers.md",
    "<!-- Study: `python benchmarks/training_study --docs FOLDER` writes what follows. -->",
    "<!-- End of the study. -->",
)


def update(folder: Path) -> None:
    """Draw the figure into the folder and replace the measured part of the document."""
    from training_study import plot  # tests of the rest need no matplotlib

    plot.draw(load(folder / STUDY), (folder / STUDY).with_suffix(".svg"))
    EVIDENCE.update(section(folder))
    print(f"{EVIDENCE.document} shows the results in {folder}")


def section(folder: Path) -> str:
    """Return the measured part: what the folder's file holds, in markdown; nothing without it."""
    if not (folder / STUDY).exists():
        return ""
    study = load(folder / STUDY)
    image = figure((folder / STUDY).with_suffix(".svg"), "Losses by step, and at the end")
    tables = (t.text(markdown=True) for t in table.tables(study))
    return "\n\n".join([table.about(study), image, *tables])
