"""Compares this bnbx with a base version, and fails if an operation is more than 1.3 times slower.

Two versions cannot share a process, so the two run in turn, head base head base ..., both through
the benchmarks of this checkout. The ratio of an operation is the median over the pairs of runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from side_by_side.report import load

LIMIT = 1.3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="directory into which the base is installed")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each version")
    parser.add_argument("--only", action="append", default=[], help="as in side_by_side")
    return parser.parse_args()


def run(site: Path | None, only: list[str]) -> dict[str, float]:
    """Return the seconds of bnbx by operation, in one run with what is installed in ``site``."""
    environment = {**os.environ, **({"PYTHONPATH": str(site)} if site else {})}
    options = ["--rounds=5", "--sides", "bnbx", *(f"--only={text}" for text in only)]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "times.json")
        subprocess.run(
            [sys.executable, Path(__file__).with_name("side_by_side"), f"--json={file}", *options],
            env=environment,
            check=True,
            capture_output=True,
        )
        results = load(file).results
    return {result.name: result.times[str(result.ours)].median for result in results}


def main() -> None:
    options = arguments()
    head, base = [], []
    for _ in tqdm(range(options.pairs), unit="pair"):
        head.append(run(None, options.only))
        base.append(run(options.site, options.only))
    ratios = {
        operation: statistics.median(
            h[operation] / b[operation] for h, b in zip(head, base, strict=True)
        )
        for operation in head[0]
        if operation in base[0]
    }
    print("| operation | time as a multiple of the base's |\n| --- | --- |")
    for operation, ratio in ratios.items():
        print(f"| {operation} | {ratio:.2f}{' **slower**' if ratio > LIMIT else ''} |")
    if max(ratios.values(), default=0.0) > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
