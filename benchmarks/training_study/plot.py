"""The results as a figure: the curves, their differences, and the final losses."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from side_by_side.plot import save, set_style
from training_study.contenders import baseline

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training_study.contenders import Contender
    from training_study.results import Study

#: Color of a family, line of a number of bits.
COLORS = {"AdamW": "#1f5fa8", "Lion": "#c2571a", "AdEMAMix": "#6a9f3b"}
LINES = {32: "-", 8: "--", 4: ":"}
MARKERS = {32: "o", 8: "s", 4: "^"}


def draw(study: Study, file: Path) -> None:
    """Write the figure."""
    set_style()
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    curves, differences, finals = figure.subplots(1, 3)
    _curves(curves, study)
    _differences(differences, study)
    _finals(finals, study)
    handles, labels = curves.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower center")
    save(figure, file)


def _curves(axes: Any, study: Study) -> None:
    for contender in study.contenders:
        _band(axes, contender, _steps(study, contender), _held_out(study, contender))
    axes.set(title="Held-out loss: mean, and range over the seeds", xlabel="step")
    axes.set_ylabel("nats per byte")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")


def _differences(axes: Any, study: Study) -> None:
    for contender in study.contenders:
        if contender is baseline(contender):
            continue
        pairs = zip(_held_out(study, contender), _held_out(study, baseline(contender)), strict=True)
        values = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
        _band(axes, contender, _steps(study, contender), values)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(title="Less the loss with 32-bit states, seed by seed", xlabel="step")
    axes.grid(alpha=0.3)


def _finals(axes: Any, study: Study) -> None:
    for place, contender in enumerate(study.contenders):
        losses = study.finals(contender)
        color = COLORS[contender.family.name]
        axes.plot([place] * len(losses), losses, MARKERS[contender.bits], color=color, alpha=0.7)
        mean = statistics.fmean(losses)
        axes.plot([place - 0.3, place + 0.3], [mean, mean], color=color, linewidth=1)
    names = [contender.name for contender in study.contenders]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(title="Final held-out loss: each seed, and the mean", ylabel="nats per byte")
    axes.grid(axis="y", alpha=0.3)


def _band(
    axes: Any, contender: Contender, steps: list[int], values: Sequence[Sequence[float]]
) -> None:
    """Draw the mean over the seeds and the range of the values, which come seed by seed."""
    by_step = list(zip(*values, strict=True))
    color = COLORS[contender.family.name]
    means = [statistics.fmean(at) for at in by_step]
    style = {"color": color, "linestyle": LINES[contender.bits], "linewidth": 1.2}
    axes.plot(steps, means, label=contender.name, **style)
    lows, highs = [min(at) for at in by_step], [max(at) for at in by_step]
    axes.fill_between(steps, lows, highs, color=color, alpha=0.12, linewidth=0)


def _steps(study: Study, contender: Contender) -> list[int]:
    return [point.step for point in study.of(contender)[0].points]


def _held_out(study: Study, contender: Contender) -> list[list[float]]:
    return [[point.held_out for point in run.points] for run in study.of(contender)]
