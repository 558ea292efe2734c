"""The results as figures: how close each operation comes to its limit, and how time grows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from side_by_side import table
from side_by_side.limits import RATE_NAMES
from side_by_side.steps import FUSED, all_steps, sizes_of

if TYPE_CHECKING:
    from pathlib import Path

    from side_by_side.comparison import Result
    from side_by_side.report import Report
    from side_by_side.steps import Step

PRODUCTS = ("gemm_4bit", "Linear8bitLt")
#: Outputs of a layer whose call costs more than its work.
SMALLEST = 1000
OURS, FAINT = "#1f5fa8", "#8a97a5"
#: Where the legend of a panel stands.
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 3}
#: Color and marker of a side; those of bnbx's other instruction sets are left out.
STYLES = {
    "bitsandbytes": ("#c2571a", "o"),
    "bitsandbytes repacked": ("#c2571a", "^"),
    "bitsandbytes training": ("#c2571a", "v"),
    "torch bf16": ("#3d4852", "s"),
    "torch int4": ("#3d4852", "D"),
    "torch AdamW fused": ("#3d4852", "s"),
    "torchao int8": ("#6a9f3b", "o"),
    "torchao AdamW8bit": ("#6a9f3b", "o"),
    "torchao AdamW4bit": ("#6a9f3b", "^"),
}


def draw(report: Report, file: Path) -> None:
    """Write the figure of the operations, or of a sweep, for the most threads measured."""
    set_style()
    results = [r for r in report.results if r.threads == report.threads[-1] and r.ours]
    figure = _sweep(results) if report.sweep else _operations(results)
    _save(figure, report, file)


def draw_steps(report: Report, file: Path) -> None:
    """Write the figure of the optimizers' steps, for the most threads measured."""
    set_style()
    found = all_steps([r for r in report.results if r.threads == report.threads[-1]])[::-1]
    sizes = sizes_of(found)
    figure = Figure(figsize=(12, 1.5 + 0.24 * len(found)), layout="constrained")
    panels = figure.subplots(1, len(sizes) + 1, sharey=True)
    for axes, size in zip(panels, sizes, strict=False):
        _bars(axes, found, [step.ratios.get(size, 0.0) for step in found])
        axes.axvline(1, color="black", linewidth=1)
        axes.set(title=size, xlabel=f"time / {FUSED}'s", xscale="log")
    _bars(panels[-1], found, [step.bytes_per_parameter.get(sizes[0], 0.0) for step in found])
    panels[-1].set(title=f"States, {sizes[0]}", xlabel="bytes per parameter")
    _save(figure, report, file)


def _bars(axes: Any, found: list[Step], values: list[float]) -> None:
    colors = [OURS if step.name.startswith("bnbx") else FAINT for step in found]
    axes.barh(range(len(found)), values, color=colors)
    axes.set_yticks(range(len(found)), [step.name for step in found])
    axes.grid(axis="x", alpha=0.3)
    for height, value in enumerate(values):
        axes.annotate(
            f"{value:.2f}" if value else table.NOTHING,
            (value or 1, height),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )


def set_style() -> None:
    """Let all figures look alike."""
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    # Text stays text, and the same results give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bnbx"})


def _save(figure: Figure, report: Report, file: Path) -> None:
    figure.suptitle(f"{report.machine['cpu']}, {table.thread_count(report.threads[-1])}")
    save(figure, file)


def save(figure: Figure, file: Path) -> None:
    """Write a figure: as an SVG it has no date in it."""
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _operations(results: list[Result]) -> Figure:
    figure = Figure(figsize=(12, 2 + 0.25 * len(results)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _shares(left, results)
    # One point for each shape: other thresholds and nested scales have nearly the same work.
    shapes = {
        (r.labels["operation"], r.labels["M"]): r
        for r in reversed(results)
        if r.labels["operation"] in PRODUCTS and r.labels["N"] > SMALLEST
    }
    _roofline(right, list(shapes.values()))
    figure.legend(*_legend(results), frameon=False, ncols=6, loc="outside lower center")
    return figure


def _legend(results: list[Result]) -> tuple[list[Line2D], list[str]]:
    present = [side for side in STYLES if any(side in r.times for r in results)]
    styles = {"bnbx": _style("bnbx"), **{side: _style(side) for side in present}}
    lines = [
        Line2D([], [], color=color, marker=marker, linestyle="none")
        for color, marker in styles.values()
    ]
    return lines, list(styles)


def _style(side: str) -> tuple[str, str] | None:
    return (OURS, "o") if side.startswith("bnbx") else STYLES.get(side)


def _points(result: Result) -> list[tuple[str, str, str]]:
    """Return side, color and marker of what is drawn of a result: ours last, on top."""
    sides = [s for s in result.times if not s.startswith("bnbx")] + [str(result.ours)]
    return [(side, *style) for side in sides if (style := _style(side))]


def _shares(axes: Any, results: list[Result]) -> None:
    for height, result in enumerate(reversed(results)):
        axes.axhline(height, color=FAINT, linewidth=0.4, zorder=0)
        for side, color, marker in _points(result):
            share = 1 / result.ratio(side, None)
            axes.plot(share, height, marker, color=color, markersize=6, alpha=0.9)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(results)), [r.name for r in reversed(results)])
    axes.set_xscale("log")
    axes.set(title="Share of the speed that the machine allows", xlabel="limit / time (1: at it)")
    axes.grid(axis="x", alpha=0.3)


def _roofline(axes: Any, results: list[Result]) -> None:
    rates = {
        rate: sorted(r.rates()[rate] for r in results if rate in r.probes) for rate in RATE_NAMES
    }
    middle = {rate: found[len(found) // 2] for rate, found in rates.items() if found}
    intensities = [10.0**exponent for exponent in (-1, 1, 2, 3, 3.7)]
    for unit, style in (("bf16", "-"), ("int8", "--")):
        if unit in middle:
            roof = [min(x * middle["read"], middle[unit]) / 1e9 for x in _dense(intensities)]
            axes.plot(_dense(intensities), roof, style, color="black", label=f"limit, {unit}")
    for result in results:
        intensity = result.work.operations / result.work.moved
        for side, color, marker in _points(result):
            speed = result.work.operations / result.times[side].median / 1e9
            axes.plot(intensity, speed, marker, color=color, markersize=6, alpha=0.9)
        ours = result.work.operations / result.times[str(result.ours)].median / 1e9
        axes.annotate(
            f"{result.labels['operation']} M={result.labels['M']}",
            (intensity, ours),
            (-6, 3 if result.work.unit == "int8" else -8),
            textcoords="offset points",
            fontsize=7,
            ha="right",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(title="Roofline of the products", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _dense(values: list[float], between: int = 20) -> list[float]:
    """Return points between the values, so that a bend is where it is."""
    return [
        a * (b / a) ** (step / between)
        for a, b in itertools.pairwise(values)
        for step in range(between)
    ] + values[-1:]


def _sweep(results: list[Result]) -> Figure:
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, operation in zip(panels, PRODUCTS, strict=False):
        _by_rows(axes, operation, [r for r in results if r.labels["operation"] == operation])
    _growth(panels[2], [r for r in results if "numel" in r.labels])
    return figure


def _by_rows(axes: Any, operation: str, results: list[Result]) -> None:
    series: dict[str, list[tuple[int, float]]] = {}
    for r in results:
        if "torch bf16" in r.times:
            points = series.setdefault(f"{r.labels['N']}x{r.labels['K']}", [])
            points.append((r.labels["M"], r.ratio("torch bf16", r.ours)))
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1, label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(title=operation, xlabel="rows of activations, M", ylabel="dense bf16 time / bnbx time")
    axes.grid(alpha=0.3)
    axes.legend(**BELOW, frameon=False, fontsize=7)


def _growth(axes: Any, results: list[Result]) -> None:
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for r in results:
        for side, times in r.times.items():
            points = series.setdefault((r.labels["operation"], side), [])
            points.append((r.labels["numel"], times.median / r.labels["numel"] * 1e9))
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in series))}
    for (name, side), points in series.items():
        ours = side.startswith("bnbx")
        if not ours and side != "bitsandbytes":
            continue
        style = {"linestyle": "-" if ours else ":", "color": colors[name], "linewidth": 1}
        label = name if ours else None
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(title="Growth (dotted: bitsandbytes)", xlabel="elements", ylabel="ns per element")
    axes.grid(alpha=0.3)
    axes.legend(**BELOW, frameon=False, fontsize=7)
