"""The figure: loss over the steps of fine-tuning, and size against perplexity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from demo_parts.measure import Measurement

OURS, PEER, FAINT = "#1f5fa8", "#c2571a", "#8a97a5"


def draw(
    measurements: list[Measurement], losses: list[float], without: list[float], path: Path
) -> None:
    """Write the figure.

    Parameters
    ----------
    measurements
        The points of the right panel.
    losses, without
        Loss by step, and that of the model without adapters, for the left panel; it is left out
        if there are none.
    path
        A PNG file.
    """
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    panels = 2 if losses else 1
    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if losses:
        _draw_losses(axes[0], losses, without)
    _draw_sizes(axes[-1], measurements)
    figure.savefig(path)


def _draw_losses(axes: Any, losses: list[float], without: list[float]) -> None:
    steps = range(1, len(losses) + 1)
    axes.plot(steps, without, "o-", color=FAINT, markersize=3, linewidth=1, label="NF4 alone")
    axes.plot(steps, losses, "o-", color=OURS, markersize=4, linewidth=2, label="with LoRA")
    axes.fill_between(steps, losses, without, color=OURS, alpha=0.12, linewidth=0)
    axes.set(
        title="LoRA on the NF4 model: loss on the text of each step",
        xlabel="step of AdamW8bit",
        ylabel="loss (nats per token)",
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def _draw_sizes(axes: Any, measurements: list[Measurement]) -> None:
    for m in measurements:
        peer = m.name.startswith("bitsandbytes")
        axes.plot(
            m.megabytes,
            m.perplexity,
            marker="o",
            markersize=11 if peer else 7,
            color=PEER if peer else OURS,
            fillstyle="none" if peer else "full",
            linestyle="none",
        )
        if not peer:
            axes.annotate(
                f"{m.name}\n{m.megabytes:.0f} MB, {m.perplexity:.2f}",
                (m.megabytes, m.perplexity),
                xytext=(9, -6 if m.name.endswith("LoRA") else 2),
                textcoords="offset points",
                verticalalignment="top" if m.name.endswith("LoRA") else "bottom",
                fontsize=9,
            )
    axes.set(
        title="Size against perplexity (lower left is better)",
        xlabel="size (MB)",
        ylabel="perplexity",
    )
    axes.set_xlim(0, 1.4 * max(m.megabytes for m in measurements))
    axes.margins(y=0.18)
    axes.grid(alpha=0.3)
    if any(m.name.startswith("bitsandbytes") for m in measurements):
        axes.plot([], [], "o", color=OURS, label="bnbx")
        axes.plot([], [], "o", color=PEER, fillstyle="none", markersize=11, label="bitsandbytes")
        axes.legend(frameon=False)
