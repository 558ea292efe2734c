"""Trains a small language model with optimizer states of 32, 8 and 4 bits, and compares the losses.

With one seed, every optimizer starts from the same parameters and reads the same text in the same
order.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import default_threads, set_threads
from side_by_side.report import host
from training_study import docs, table, text
from training_study.contenders import CONTENDERS, Contender, baseline
from training_study.model import LanguageModel
from training_study.results import Study, load
from training_study.train import QUICK, Run, Settings, train

#: The sweep has one seed that the study does not have, and a quarter of its steps.
SWEEP_SEED, SWEEP_SHARE = 1000, 4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training_study", description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--quick", action="store_true", help="a tiny model: does everything work?")
    parser.add_argument(
        "--sweep", action="store_true", help="compare the learning rates of each family first"
    )
    parser.add_argument("--no-study", action="store_true", help="nothing but the sweep")
    parser.add_argument("--dtype", default=Settings.dtype, help="of products: bfloat16, float32")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="do not train")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results, SVG or PNG")
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="update docs/optimizers.md from its results"
    )
    return parser.parse_args()


def about(settings: Settings, threads: int) -> dict[str, dict[str, Any]]:
    """Return machine and settings, as a study records them."""
    families = {contender.family.name: contender.family for contender in CONTENDERS}
    parameters = sum(p.numel() for p in LanguageModel(settings.shape).parameters())
    return {
        "machine": {**host(("torch",)), "threads": threads},
        "settings": {
            **dataclasses.asdict(settings),
            "parameters": parameters,
            "families": {
                name: {"lr": f.lr, "weight_decay": f.weight_decay, **f.settings(settings.steps)}
                for name, f in families.items()
            },
        },
    }


def measure(options: argparse.Namespace) -> Study:
    """Train with what the command line asks for."""
    settings = dataclasses.replace(QUICK if options.quick else Settings(), dtype=options.dtype)
    present = [contender for contender in CONTENDERS if contender.factory]
    corpus = text.load()
    study = Study(**about(settings, options.threads), text=corpus.about())
    study.left_out = [f"{c.name}: not in this version of bnbx" for c in CONTENDERS if not c.factory]
    if options.sweep:
        short = dataclasses.replace(settings, steps=settings.steps // SWEEP_SHARE)
        trials = [
            (contender, SWEEP_SEED, rate)
            for contender in present
            if contender is baseline(contender)
            for rate in contender.family.rates
        ]
        study.sweep = _train_all(trials, short, corpus)
    if not options.no_study:
        trials = [(c, seed, c.family.lr) for seed in settings.seeds for c in present]
        study.runs = _train_all(trials, settings, corpus)
    return study


def _train_all(
    trials: list[tuple[Contender, int, float]], settings: Settings, corpus: text.Text
) -> list[Run]:
    runs = []
    with tqdm(total=len(trials) * settings.steps, unit="step") as progress:
        for contender, seed, lr in trials:
            progress.set_description(f"{contender.name}, lr {lr:g}, seed {seed}")
            done = functools.partial(progress.update, 1)
            runs.append(train(contender, seed, settings, corpus, done, lr))
            progress.write(f"{contender.name}, lr {lr:g}, seed {seed}: {runs[-1].final:.4f}")
    return runs


def main() -> None:
    options = arguments()
    if options.docs:
        from training_study import plot  # the rest needs no matplotlib

        docs.EVIDENCE.update_from(options.docs, plot.draw)
        return
    set_threads(options.threads)
    study = load(options.source) if options.source else measure(options)
    if options.json:
        study.save(options.json)
    if options.plot:
        from training_study import plot

        plot.draw(study, options.plot)
    tables = (t.text(markdown=False) for t in table.tables(study))
    print("\n\n".join([table.about(study), *tables]))
