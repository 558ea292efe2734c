"""Perplexity of SmolLM2-135M in 4 and 8 bits, by how codes and scales are chosen.

Every linear layer but the output, blocks of 64. The texts are Wikipedia summaries that
examples/demo.py reads, every 100th of them; calibration reads summaries between those.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tqdm import tqdm

from common import default_threads, set_threads
from quality_study import docs, results
from quality_study.variants import VARIANTS
from side_by_side.report import host


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quality_study", description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=[v.name for v in VARIANTS],
        metavar="NAME",
        help="some variants, in this order; a FILE that exists keeps the others",
    )
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="do not measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results, SVG or PNG")
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="update docs/quality.md from its results"
    )
    return parser.parse_args()


def measure(options: argparse.Namespace) -> results.Study:
    """Measure what the command line asks for, and write it row by row."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from quality_study import measures, scales, study

    measures.give_memory_back()
    machine = {**host(("torch", "transformers")), "threads": options.threads}
    found = results.Study(machine, [tokens for _, tokens in study.TEXTS])
    if options.only and options.json and options.json.exists():
        found = results.load(options.json)
    model, tokenizer = study.load()
    if not found.gains:
        found.gains = list(scales.gains(model))
    by_name = {variant.name: variant for variant in VARIANTS}
    chosen = [by_name[name] for name in options.only or by_name]
    for row in tqdm(
        study.measured(model, tokenizer, chosen), total=1 + len(chosen), unit="variant"
    ):
        found.put(row)
        tqdm.write(str(row))
        if options.json:
            found.save(options.json)
    return found


def main() -> None:
    options = arguments()
    if options.docs:
        from quality_study import plot  # the rest needs no matplotlib

        docs.EVIDENCE.update_from(options.docs, plot.draw)
        return
    set_threads(options.threads)
    found = results.load(options.source) if options.source else measure(options)
    if options.plot:
        from quality_study import plot

        plot.draw(found, options.plot)
    tables = (table.text(markdown=False) for table in results.tables(found))
    print(results.about(found), *tables, sep="\n\n")
