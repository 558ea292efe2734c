"""The results as a figure: what is lost by size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from quality_study.results import DRAWS
from side_by_side.plot import save, set_style

if TYPE_CHECKING:
    from pathlib import Path

    from quality_study.results import Row, Study

COLORS = {"bf16": "#3d4852", "int8": "#6a9f3b", "NF4": "#1f5fa8", "FP4": "#c2571a"}
#: Ways to choose codes and scales, and their markers.
MARKERS = {"GPTQ": "D", "imatrix": "^", "scale search": "s", "": "o"}


def draw(study: Study, file: Path) -> None:
    """Write the figure, for all texts taken together."""
    set_style()
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in study.rows if DRAWS not in row.name]
    _points(left, rows, [_perplexity(study, row) for row in rows])
    left.set(title="Perplexity of all texts", xlabel="size, MB")
    small = [row for row in rows if row.name != "bf16"]
    _points(right, small, [_divergence(study, row) for row in small])
    right.set(title="Divergence from bf16, nats a token", xlabel="size, MB")
    figure.legend(
        *left.get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center"
    )
    save(figure, file)


def _points(axes: Any, rows: list[Row], values: list[float]) -> None:
    for row, value in zip(rows, values, strict=True):
        kind, *rest = row.name.split(", ")
        way = next(way for way in MARKERS if way in row.name)
        face = "none" if "double quantization" in rest else COLORS[kind]
        style = {"color": COLORS[kind], "markerfacecolor": face, "linestyle": "none"}
        axes.plot(row.bytes / 1e6, value, MARKERS[way], label=row.name, **style)
    axes.grid(alpha=0.3)


def _perplexity(study: Study, row: Row) -> float:
    pairs = zip(row.losses, study.texts, strict=True)
    nats = sum(math.log(loss.perplexity) * tokens for loss, tokens in pairs)
    return math.exp(nats / sum(study.texts))


def _divergence(study: Study, row: Row) -> float:
    pairs = zip(row.losses, study.texts, strict=True)
    return sum(loss.divergence * tokens for loss, tokens in pairs) / sum(study.texts)
