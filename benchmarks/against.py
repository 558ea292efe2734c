"""Compares this bnbx with a base version, and fails if an operation has become slower.

Two versions cannot share a process. So three processes, one with this version and two with the
base, take a sample of an operation in turn, round by round: what disturbs the machine disturbs all
three. How far the two with the same base are apart is the noise of this run on this machine. An
operation is slower if its ratio, the median over the rounds, is beyond 1.1 plus that noise; it is
then measured once more by new processes, and only what is slower again fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Sequence

#: By how much an operation may be slower, beyond the noise.
TOLERANCE = 0.1
#: Of the rounds, how many show less noise than what is called the noise.
WITHIN = 0.9


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rounds say of an operation.

    Attributes
    ----------
    ratio
        The time of this version as a multiple of the base's.
    noise
        The same of the base and the base, less 1.
    """

    ratio: float
    noise: float

    @classmethod
    def of(cls, rounds: Sequence[tuple[float, float, float]]) -> Verdict:
        """Judge rounds of samples, in seconds: of this version, the base, and the base again."""
        deviations = sorted(abs(again / base - 1) for _, base, again in rounds)
        noise = deviations[int(WITHIN * (len(deviations) - 1))]
        return cls(statistics.median(head / base for head, base, _ in rounds), noise)

    @property
    def slower(self) -> bool:
        """Whether the change would be refused."""
        return self.ratio > 1 + TOLERANCE + self.noise


class Side:
    """A process with one version of bnbx, which times what it is told: against_side.py."""

    def __init__(self, site: Path | None, options: Sequence[str]) -> None:
        # Threads that wait for work must not take the other processes' time.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        if site is not None:
            environment["PYTHONPATH"] = str(site)
        command = [sys.executable, Path(__file__).with_name("against_side.py"), *options]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1
        )
        self._answers = cast("IO[str]", self._process.stdout)

    def ask(self, *request: str) -> object:
        """Return the answer to a request of against_side.py."""
        print(json.dumps(request), file=self._process.stdin)
        if not (answer := self._answers.readline()):
            raise SystemExit(f"{' '.join(request)}: a benchmark process has ended, see above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(
    names: Sequence[str] | None, options: argparse.Namespace, settings: Sequence[str]
) -> tuple[dict[str, Verdict], list[str]]:
    """Return the verdicts by operation, and sentences on what was left out; None means all."""
    head, base, again = sides = [
        Side(site, settings) for site in (options.head, options.base, options.base)
    ]
    if names is None:
        chosen = options.only or [""]
        names = [n for n in map(str, head.ask("names")) if any(text in n for text in chosen)]
    verdicts: dict[str, Verdict] = {}
    left_out = []
    for name in (progress := tqdm(names, disable=None)):
        progress.set_description(name)
        if missing := [str(why) for side in sides if (why := side.ask("prepare", name))]:
            left_out.append(f"{name}: {missing[0]}")
            continue
        rounds = []
        order = list(sides)
        for _ in range(options.rounds):
            seconds = {side: float(str(side.ask("sample"))) for side in order}
            rounds.append((seconds[head], seconds[base], seconds[again]))
            order.append(order.pop(0))
        verdicts[name] = Verdict.of(rounds)
    for side in sides:
        side.close()
    return verdicts, left_out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="directory into which the base is installed")
    parser.add_argument(
        "--head", type=Path, help="the same of this version; default: what Python finds"
    )
    parser.add_argument("--rounds", type=int, default=15, help="samples of each side")
    parser.add_argument("--only", action="append", default=[], help="as in side_by_side")
    parser.add_argument("--threads", type=int, help="of each side; default: all")
    parser.add_argument("--cpu-time", action="store_true", help="as in side_by_side")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    settings = ["--cpu-time"] if options.cpu_time else []
    if options.threads:
        settings.append(f"--threads={options.threads}")
    verdicts, left_out = measure(None, options, settings)
    if not verdicts:
        raise SystemExit("expected an operation to compare, got none: " + "; ".join(left_out))
    suspects = [name for name, verdict in verdicts.items() if verdict.slower]
    slower = []
    if suspects:
        verdicts |= measure(suspects, options, settings)[0]
        slower = [name for name in suspects if verdicts[name].slower]
    print("| operation | time as a multiple of the base's | noise |\n| --- | --- | --- |")
    for name, verdict in verdicts.items():
        mark = " **slower**" if name in slower else ""
        print(f"| {name} | {verdict.ratio:.2f}{mark} | {verdict.noise:.2f} |")
    if left_out:
        print("\n" + "\n".join(f"Not compared: {why}" for why in left_out))
    if slower:
        raise SystemExit(f"slower by more than {TOLERANCE:.0%} and the noise: {', '.join(slower)}")


if __name__ == "__main__":
    main()
