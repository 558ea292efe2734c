"""One of the processes of against.py: times the version of bnbx that Python finds.

It reads requests from its input, a JSON list to a line, and answers each with a line of JSON:
``["names"]`` with the names of the operations, ``["prepare", name]`` with a sentence on why this
version cannot do one, or null, and ``["sample"]`` with the seconds of a call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from common import default_threads, set_threads
from side_by_side import cases
from side_by_side.libraries import isas
from side_by_side.timing import Sampler, Settings


def prepare(name: str, settings: Settings) -> Sampler | str:
    """Return what times an operation, or why there is nothing to time."""
    comparison = cases.operations()[name]()
    if comparison is None:
        return "not in one of the versions"
    side = f"bnbx {isas()[0]}"
    if side not in comparison.sides:
        return f"{side} has no part in it"
    return Sampler(comparison.sides[side](), settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    set_threads(options.threads)
    settings = Settings(cpu_time=options.cpu_time)
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sampler: Sampler | str = "nothing was prepared"
    for line in sys.stdin:
        request, *names = json.loads(line)
        answer: object = None
        if request == "names":
            answer = list(cases.operations())
        elif request == "prepare":
            sampler = ""  # the memory of the one before
            sampler = prepare(names[0], settings)
            answer = sampler if isinstance(sampler, str) else None
        elif isinstance(sampler, Sampler):
            answer = sampler.sample()
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
