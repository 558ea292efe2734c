"""The command line: what is installed, and quantizing, measuring and inspecting models.

Each command is a module with two functions: ``add`` declares its arguments, ``run`` carries it out
and returns the report as text and as plain JSON values. What they do, they call from bnbx.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from bnbx.cli import bench, evaluate, info, inspect, quantize, selftest

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "info": info,
    "quantize": quantize,
    "eval": evaluate,
    "inspect": inspect,
    "bench": bench,
    "selftest": selftest,
}
JSON = "print JSON instead of a table"
#: What went wrong -> the exit status; 2 is a wrong command line.
REFUSED, MISSING_PACKAGE, SYSTEM_ERROR = 1, 3, 4
EXIT_STATUSES = """\
exit status:
  0 done  1 refused: an argument or a file is not as it has to be; a self-test failed
  2 wrong command line
  3 a package is not installed  4 the system could not (disk full, no permission)  130, 143 stopped
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments
        The arguments after the program's name; ``sys.argv`` by default.
    """
    options = _parser().parse_args(arguments)
    name = options.command or "info"
    # SIGTERM, as an exception, lets a command remove what it has half written.
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        report, text = COMMANDS[name].run(options)
    except ImportError as missing:
        return _failed(name, missing, MISSING_PACKAGE)
    except ValueError as refused:
        return _failed(name, refused, REFUSED)
    except OSError as failure:
        return _failed(name, failure, SYSTEM_ERROR)
    except KeyboardInterrupt:
        return _failed(name, "interrupted", 128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write((json.dumps(report, indent=2) if options.json else text) + "\n")
    return REFUSED if report.get("failures") else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bnbx",
        description="k-bit quantization for PyTorch",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add(command)
        # A default would undo a --json in front of the command.
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=JSON)
    parser.add_argument("--json", action="store_true", help=JSON)
    return parser


def _failed(name: str, what: Any, status: int) -> int:
    sys.stderr.write(f"bnbx {name}: {what}\n")
    return status


def _terminate(number: int, _frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
