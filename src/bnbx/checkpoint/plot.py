"""A picture of the errors of quantized weights. Importing it needs matplotlib."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bnbx.checkpoint.optional import need
from bnbx.ops import error

if TYPE_CHECKING:
    from pathlib import Path

    from bnbx.checkpoint.inspection import Inspection

Figure = need("matplotlib.figure", "the plot").Figure
#: More lines than this cannot be told apart; they are drawn without a legend.
MOST_IN_LEGEND = 20


def save_plot(inspection: Inspection, path: Path) -> None:
    """Draw the relative error of each weight over the number of its layer.

    Weights of one name in all layers, as ``q_proj``, are one line. The suffix of the name says what
    sort of picture it is.

    Raises
    ------
    ValueError
        If the errors are not known, for want of a reference.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for weight in inspection.weights:
        if weight.relative_error is None:
            raise error("plot", "errors", "sizes only, because there is no reference")
        number = re.search(r"(?:^|\.)(\d+)\.", weight.name)
        kind = weight.name.removesuffix(".weight").rpartition(".")[2]
        point = (int(number[1]) if number else 0, weight.relative_error)
        lines.setdefault(kind, []).append(point)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for kind, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=kind)
    axes.set(xlabel="layer", ylabel="relative error")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if len(lines) <= MOST_IN_LEGEND:
        figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=150)
