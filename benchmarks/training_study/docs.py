"""The measured part of docs/optimizers.md."""

from __future__ import annotations

from document import ROOT, StudyPart
from training_study import table
from training_study.results import load

EVIDENCE = StudyPart(
    ROOT / "docs" / "optimizers.md",
    "<!-- Study: `python benchmarks/training_study --docs FOLDER` writes what follows. -->",
    "<!-- End of the study. -->",
    results="training_study.json",
    caption="Losses by step, and at the end",
    load=load,
    about=table.about,
    tables=table.tables,
)
