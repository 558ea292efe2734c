"""The measured part of docs/quality.md."""

from __future__ import annotations

from document import ROOT, StudyPart
from quality_study import results

EVIDENCE = StudyPart(
    ROOT / "docs" / "quality.md",
    "<!-- Study: `python benchmarks/quality_study --docs FOLDER` writes what follows. -->",
    "<!-- End of the study. -->",
    results="quality.json",
    caption="Perplexity and divergence by size",
    load=results.load,
    about=results.about,
    tables=results.tables,
)
