"""The command line: what is installed, what was chosen, what runs where."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from bnbx.cli.info import collect, render

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments
        The arguments after the program's name; ``sys.argv`` by default.
    """
    parser = argparse.ArgumentParser(prog="bnbx", description="k-bit quantization for PyTorch")
    commands = parser.add_subparsers(dest="command")
    info = commands.add_parser("info", help="versions, backends and operations (the default)")
    for each in (parser, info):
        each.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    report = collect()
    text = json.dumps(report, indent=2) if options.json else render(report)
    sys.stdout.write(text + "\n")
    return 0
