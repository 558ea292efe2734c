"""The results as tables and sentences."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from side_by_side.table import NOTHING, Table, thread_count
from training_study.contenders import CONTENDERS, baseline
from training_study.results import spread

if TYPE_CHECKING:
    from training_study.results import Study


def about(study: Study) -> str:
    """Return what was trained on what, as a list."""
    machine, settings, text = study.machine, study.settings, study.text
    shape = settings["shape"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    tokens = settings["steps"] * settings["batch"] * shape["length"]
    seconds = sum(run.seconds for run in study.runs)
    hardware = (
        f"{machine['cpu']}, {thread_count(machine['threads'])}; {machine['system']}; {versions}; "
        f"{machine['date']}; {len(study.runs)} runs in {seconds / 60:.0f} minutes"
    )
    model = (
        f"model: {settings['parameters'] / 1e6:.2f} million parameters in float32, products in "
        f"{settings['dtype']}; {shape['layers']} layers, width {shape['width']}, "
        f"{shape['length']} bytes of context"
    )
    data = (
        f"text: {text['training_bytes']:,} bytes, and {text['held_out_bytes']:,} held out; "
        f"SHA-256 {text['sha256'][:16]}..."
    )
    schedule = (
        f"{settings['steps']} steps of {settings['batch']} windows, {tokens:,} bytes in all; "
        f"seeds {', '.join(map(str, settings['seeds']))}"
    )
    families = (f"{name}: {_settings(of)}" for name, of in settings["families"].items())
    lines = [hardware, model, data, schedule, *families, *study.left_out]
    return "\n".join(f"- {line}" for line in lines)


def _settings(values: dict[str, object]) -> str:
    def number(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(
        f"{name} ({', '.join(map(number, value))})"
        if isinstance(value, (list, tuple))
        else f"{name} {number(value)}"
        for name, value in values.items()
    )


def finals(study: Study) -> Table:
    """Return the final losses and their spread, and the bytes of the states."""
    seeds = [run.seed for run in study.of(study.contenders[0])]
    rows = []
    for contender in study.contenders:
        losses = study.finals(contender)
        size = study.of(contender)[0].bytes_per_parameter
        mean, deviation = statistics.fmean(losses), statistics.stdev(losses)
        rows.append(
            [
                contender.name,
                f"{size:.2f}",
                *(f"{loss:.4f}" for loss in losses),
                f"{mean:.4f} +- {deviation:.4f}",
                f"{spread(losses):.4f}",
            ]
        )
    header = ["optimizer", "state, bytes per parameter", *(f"seed {seed}" for seed in seeds)]
    header += ["mean +- standard deviation", "largest - smallest"]
    return Table("Held-out loss after training, nats per byte", header, rows)


def differences(study: Study) -> Table:
    """Return the paired differences to 32-bit states, beside the spread of those over the seeds."""
    rows = []
    for contender in study.contenders:
        if contender is baseline(contender):
            continue
        found = study.comparison(contender)
        rows.append(
            [
                f"{contender.name} - {baseline(contender).name}",
                f"{found.difference:+.4f}",
                f"{min(found.differences):+.4f} to {max(found.differences):+.4f}",
                f"{spread(found.baseline):.4f}",
                "within" if found.within else "outside",
            ]
        )
    header = ["loss", "mean", "by seed", "spread of 32 bits over seeds", "the mean is"]
    return Table("Difference of quantized states, seed by seed", header, rows)


def sweep(study: Study) -> Table:
    """Return the losses of the sweep by learning rate, the chosen one in brackets."""
    rows: dict[str, list[str]] = {}
    for run in study.sweep:
        family = _family_name(run.optimizer)
        chosen = run.lr == study.settings["families"][family]["lr"]
        text = f"{run.lr:g}: {run.final:.4f}"
        rows.setdefault(run.optimizer, []).append(f"[{text}]" if chosen else text)
    width = max((len(cells) for cells in rows.values()), default=0)
    header = ["optimizer", *(f"rate {number}: loss" for number in range(1, width + 1))]
    cells = [[name, *found, *[NOTHING] * (width - len(found))] for name, found in rows.items()]
    return Table("Sweep of the learning rate; [the chosen one]", header, cells)


def _family_name(optimizer: str) -> str:
    return next(c.family.name for c in CONTENDERS if c.name == optimizer)


def tables(study: Study) -> list[Table]:
    """Return the tables that have rows."""
    found = [sweep(study)] if study.sweep else []
    return found + ([finals(study), differences(study)] if study.runs else [])
