"""Times bnbx, other libraries and dense PyTorch side by side, and compares them with the limits.

Each operation is timed in turn by all sides, round by round, on fresh data, with the same number of
threads, and together with the memory bandwidth and the matrix products that limit it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from common import default_threads, set_threads
from side_by_side import cases, docs, report, table
from side_by_side.comparison import Result, compare
from side_by_side.libraries import MISSING, isas
from side_by_side.timing import Settings

#: In the sweep, a side that took longer than this, in seconds, and ``SLOWER`` times as long as bnbx
#: sits out what is larger.
SLOW, SLOWER = 0.3, 2
#: Sides of the sweep: what a model could run on instead, and what nothing has to be compiled for.
SWEEP_SIDES = ("bnbx", "bitsandbytes", "bitsandbytes repacked", "torch int4", "torch bf16")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="side_by_side", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[default_threads()])
    parser.add_argument("--sweep", action="store_true", help="shapes of models, and growing sizes")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows whose name holds it")
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help="bnbx is the best one")
    parser.add_argument("--rounds", type=int, help="samples of each side; 25, in the sweep 5")
    parser.add_argument("--budget", type=float, help="seconds for each side of a row; 1, or 0.2")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of one thread: for a machine that is busy"
    )
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="do not measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results, as SVG or PNG")
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="update docs/performance.md from its results"
    )
    options = parser.parse_args()
    if options.cpu_time and options.threads != [1]:
        parser.error("--cpu-time: expected --threads 1, because other threads' time is not in it")
    return options


def sides_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the names of the sides that take part; empty for all."""
    names = options.sides or (SWEEP_SIDES if options.sweep else ())
    return tuple(f"bnbx {isas()[0]}" if name == "bnbx" else name for name in names)


def slow(result: Result) -> list[str]:
    """Return the sides that are to sit out."""
    return [
        side
        for side, times in result.times.items()
        if times.median > SLOW and result.ours and result.ratio(side, result.ours) > SLOWER
    ]


def measure(options: argparse.Namespace) -> report.Report:
    """Time the cases that the command line asks for."""
    rounds, budget = (5, 0.2) if options.sweep else (25, 1.0)
    settings = Settings(options.rounds or rounds, options.budget or budget, options.cpu_time)
    chosen = cases.sweep() if options.sweep else cases.operations()
    names = [n for n in chosen if not options.only or any(text in n for text in options.only)]
    if not names:
        raise SystemExit("--only: no row has that in its name; the rows are " + ", ".join(chosen))
    sides = sides_of(options)
    run = report.Report(report.machine(settings), options.sweep)
    tired: set[tuple[object, ...]] = set()
    for name in (progress := tqdm(names)):
        progress.set_description(name)
        comparison = chosen[name]()
        if comparison is None:
            run.left_out.append(f"{name}: not in this version of bnbx")
            continue
        for threads in options.threads:
            set_threads(threads)
            series = (threads, *(comparison.labels.get(key) for key in ("operation", "N", "K")))
            taking_part = [
                side
                for side in comparison.sides
                if (not sides or side in sides) and (side, *series) not in tired
            ]
            result = compare(name, comparison, threads, settings, taking_part)
            run.results.append(result)
            if options.sweep:
                tired |= {(side, *series) for side in slow(result)}
    run.left_out += [f"{name}: {why}" for name, why in MISSING.items()]
    return run


def main() -> None:
    options = arguments()
    if options.docs:
        docs.update(options.docs)
        return
    run = report.load(options.source) if options.source else measure(options)
    if options.json:
        run.save(options.json)
    found = table.tables(run)
    if options.markdown:
        text = "\n\n".join(t.text(markdown=True) for t in found)
        options.markdown.write_text(f"{table.about(run)}\n\n{text}\n")
    if options.plot:
        from side_by_side import plot

        plot.draw(run, options.plot)
    print("\n\n".join([table.about(run), *(t.text(markdown=False) for t in found)]))
