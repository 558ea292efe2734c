"""Writes the measured part of docs/performance.md from the results in a folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from document import ROOT, MeasuredPart, figure
from side_by_side import table
from side_by_side.report import Report, load
from side_by_side.table import Table

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = MeasuredPart(
    ROOT / "docs" / "performance.md",
    "<!-- Results: `python benchmarks/side_by_side --docs FOLDER` writes what follows. -->",
    "<!-- End of the results. -->",
)
OPERATIONS, SWEEP, DEMO = "operations.json", "sweep.json", "demo.json"
STEPS = "optimizers.svg"


def update(folder: Path) -> None:
    """Draw the figures into the folder and replace the measured part of the document."""
    from side_by_side import plot  # tests of the rest need no matplotlib

    for name in (OPERATIONS, SWEEP):
        if (folder / name).exists():
            plot.draw(load(folder / name), (folder / name).with_suffix(".svg"))
    if (folder / OPERATIONS).exists():
        plot.draw_steps(load(folder / OPERATIONS), folder / STEPS)
    RESULTS.update(section(folder))
    print(f"{RESULTS.document} shows the results in {folder}")


def section(folder: Path) -> str:
    """Return the measured part: what the folder's files hold, in markdown."""
    parts = []
    if (folder / OPERATIONS).exists():
        parts += _operations(load(folder / OPERATIONS), folder)
    if (folder / SWEEP).exists():
        parts += _sweep(load(folder / SWEEP), folder)
    if (folder / DEMO).exists():
        parts += _demo(json.loads((folder / DEMO).read_text()))
    return "\n\n".join(parts)


def _operations(report: Report, folder: Path) -> list[str]:
    parts = ["### Machine", table.about(report), table.limits(report).text(markdown=True)]
    parts += ["### Operations", table.formulas(report.results).text(markdown=True)]
    shares = (folder / OPERATIONS).with_suffix(".svg")
    parts.append(figure(shares, "Share of the limit that each operation reaches"))
    for threads in reversed(report.threads):
        parts += [t.text(markdown=True) for t in table.operations(report, threads)]
    parts += ["### Optimizers", figure(folder / STEPS, "Time of a step and bytes of state")]
    parts += [table.steps(report, t).text(markdown=True) for t in reversed(report.threads)]
    return parts


def _sweep(report: Report, folder: Path) -> list[str]:
    parts = ["### Shapes of models, and growth", table.about(report)]
    image = (folder / SWEEP).with_suffix(".svg")
    parts.append(figure(image, "Speed by rows of activations, and time per element"))
    for threads in reversed(report.threads):
        parts += [t.text(markdown=True) for t in table.sweeps(report, threads)]
    return parts


def _demo(results: dict[str, Any]) -> list[str]:
    seconds = results["seconds_per_step"]
    rows = [
        [
            m["name"],
            f"{m['generation']:.1f}",
            f"{m['prefill']:.0f}",
            f"{step:.2f}" if (step := seconds.get(f"{m['name']} + LoRA")) else table.NOTHING,
        ]
        for m in results["measurements"]
        if not m["name"].endswith("LoRA")
    ]
    header = ["format", "generation, tokens/s", "prefill, tokens/s", "seconds per LoRA step"]
    title = (
        f"SmolLM2-135M-Instruct, {results['threads']} threads, "
        f"{results['tokens_per_step']} tokens per step"
    )
    return ["### End to end", Table(title, header, rows).text(markdown=True)]
