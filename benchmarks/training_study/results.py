"""The results of the study: their file, and what follows from them."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import TYPE_CHECKING, Any

from training_study.contenders import CONTENDERS, Contender, baseline
from training_study.train import Point, Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclasses.dataclass
class Study:
    """What ran, and what came out.

    Attributes
    ----------
    machine
        Processor, versions, date, threads.
    settings
        Those of all runs, of each family, and the number of the model's parameters.
    text
        What identifies the text.
    sweep
        The runs from which the learning rates were chosen.
    runs
        Those of the study.
    left_out
        Sentences on what did not run, and why.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    text: dict[str, Any]
    sweep: list[Run] = dataclasses.field(default_factory=list)
    runs: list[Run] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def contenders(self) -> list[Contender]:
        """The contenders that ran."""
        names = {run.optimizer for run in self.runs}
        return [contender for contender in CONTENDERS if contender.name in names]

    def of(self, contender: Contender) -> list[Run]:
        """Return the runs of a contender by seed."""
        found = [run for run in self.runs if run.optimizer == contender.name]
        return sorted(found, key=lambda run: run.seed)

    def finals(self, contender: Contender) -> list[float]:
        """Return the final losses of a contender by seed."""
        return [run.final for run in self.of(contender)]

    def comparison(self, contender: Contender) -> Comparison:
        """Return the contender beside its family's 32-bit states."""
        return Comparison(self.finals(contender), self.finals(baseline(contender)))

    def save(self, file: Path) -> None:
        """Write everything, a run to a line; the folder is made."""
        content = dataclasses.asdict(self)
        lists = []
        for key in ("sweep", "runs"):
            lines = ",\n".join(_line(run) for run in content.pop(key))
            lists.append(f' "{key}": [\n{lines}\n]')
        head = json.dumps(content, indent=1).removesuffix("\n}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(",\n".join([head, *lists]) + "}\n")


def _line(run: dict[str, Any]) -> str:
    points = [tuple(point.values()) for point in run["points"]]
    return json.dumps({**run, "points": points})


def load(file: Path) -> Study:
    """Return what ``save`` has written."""
    content = json.loads(file.read_text())
    for key in ("sweep", "runs"):
        content[key] = [
            Run(**{**run, "points": [Point(*point) for point in run["points"]]})
            for run in content[key]
        ]
    return Study(**content)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Losses beside those of 32-bit states, both by seed."""

    losses: Sequence[float]
    baseline: Sequence[float]

    @property
    def differences(self) -> list[float]:
        """Loss less that of 32-bit states, by seed: with the same start and the same text."""
        return [ours - other for ours, other in zip(self.losses, self.baseline, strict=True)]

    @property
    def difference(self) -> float:
        """The mean of the differences."""
        return statistics.fmean(self.differences)

    @property
    def within(self) -> bool:
        """Whether the mean difference is at most as large as the spread over the seeds."""
        return abs(self.difference) <= spread(self.baseline)


def spread(losses: Sequence[float]) -> float:
    """Return the largest loss less the smallest."""
    return max(losses) - min(losses)
