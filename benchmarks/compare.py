"""Prints one table: bnbx, bitsandbytes, dense torch and the bandwidth limit, timed side by side.

Each row times its contestants in turn, round by round, on fresh data and with the same number of
threads. A cell holds the median time and, in brackets, the median over the rounds of that time as a
multiple of bnbx's: above 1 means that bnbx is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from common import (
    bandwidth,
    cpu_name,
    default_threads,
    median_ratio,
    paired,
    set_threads,
    versions,
)
from rows import ROWS

CONTESTANTS = ("bnbx", "bitsandbytes", "bitsandbytes eval", "torch bf16", "torch fp32")
LIMIT = "limit"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=11, help="samples of each contestant")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows whose name holds it")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--markdown", action="store_true", help="with machine and versions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the times here")
    return parser.parse_args()


def measure(name: str, contestants: tuple[str, ...], rounds: int) -> tuple[dict, int]:
    """Return the times of one row, by contestant, and the bytes it has to move."""
    row = ROWS[name]()
    calls = {c: row.calls[c] for c in contestants if c in row.calls}
    return paired(calls, rounds), row.moved


def cell(seconds: float, ratio: float) -> str:
    unit, value = ("us", seconds * 1e6) if seconds < 1e-4 else ("ms", seconds * 1e3)
    number = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number} {unit} ({ratio:.2f}x)"


def cells(times: dict[str, list[float]], limit: float) -> dict[str, str]:
    """Return the row's text by column."""
    ours = times.get("bnbx")
    text = {
        name: cell(statistics.median(t), median_ratio(t, ours) if ours else float("nan"))
        for name, t in times.items()
    }
    ratio = limit / statistics.median(ours) if ours else float("nan")
    return {**text, LIMIT: cell(limit, ratio)}


def table(rows: dict[str, dict[str, str]], columns: list[str], *, markdown: bool) -> str:
    lines = [["operation", *columns]]
    lines += [[name, *(row.get(c, "-") for c in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    if markdown:
        lines.insert(1, ["-" * width for width in widths])
    edge, gap = ("| ", " | ") if markdown else ("", "  ")
    padded = (
        gap.join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(f"{edge}{line}{edge[::-1]}".rstrip() for line in padded)


def description(threads: int, rates: dict[str, float]) -> list[str]:
    return [
        f"{cpu_name()}, {threads} threads, torch sees {torch.backends.cpu.get_cpu_capability()}",
        versions("bnbx", "bitsandbytes", "torch"),
        f"copy {rates['copy'] / 1e9:.1f} GB/s (read plus written), read {rates['read'] / 1e9:.1f}",
        "limit: the bytes that must be read and written once, at the rate of the copy",
    ]


def main() -> None:
    options = arguments()
    set_threads(options.threads)
    names = [n for n in ROWS if not options.only or any(text in n for text in options.only)]
    if not names:
        raise SystemExit("--only: no row has that in its name; the rows are " + ", ".join(ROWS))
    rates = bandwidth(options.rounds)
    seconds, rows = {}, {}
    for name in (progress := tqdm(names)):
        progress.set_description(name)
        times, moved = measure(name, tuple(options.contestants), options.rounds)
        limit = moved / rates["copy"]
        rows[name] = cells(times, limit)
        seconds[name] = {**{c: statistics.median(t) for c, t in times.items()}, LIMIT: limit}
    about = description(options.threads, rates)
    shown = [c for c in (*options.contestants, LIMIT) if any(c in row for row in rows.values())]
    text = table(rows, shown, markdown=options.markdown)
    print("\n".join([*(f"- {line}" for line in about), "", text]) if options.markdown else text)
    if not options.markdown:
        print("\n" + "\n".join(about))
    if options.json:
        options.json.write_text(json.dumps({"about": about, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
