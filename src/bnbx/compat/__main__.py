"""``python -m bnbx.compat program.py args...``: run a program with bnbx as its bitsandbytes."""

from __future__ import annotations

import os
import runpy
import sys
import types
from pathlib import Path

from bnbx.compat.alias import SITE, install

USAGE = """usage: python -m bnbx.compat PROGRAM [ARGUMENTS ...]
       python -m bnbx.compat -m MODULE [ARGUMENTS ...]
       python -m bnbx.compat -c CODE [ARGUMENTS ...]

Run a Python program in which `import bitsandbytes` gives bnbx, and its child processes too."""


def prepare() -> None:
    """Register the alias here, and put it in the way of processes that are started from here."""
    install()
    site = str(SITE)
    before = os.environ.get("PYTHONPATH")
    if before is None or site not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([site, before] if before else [site])
    # multiprocessing hands its own sys.path to the processes that it spawns.
    if site not in sys.path:
        sys.path.insert(1, site)


def main() -> int:
    """Run the program that ``sys.argv`` names, as ``python`` would run it.

    Returns
    -------
    int
        The exit status, where the program has not ended the process itself.
    """
    if len(sys.argv) < 2 or sys.argv[1] in {"-h", "--help"}:
        sys.stderr.write(USAGE + "\n")
        return 2 if len(sys.argv) < 2 else 0
    option, rest = sys.argv[1], sys.argv[2:]
    if option in {"-m", "-c"} and not rest:
        sys.stderr.write(f"{option}: expected an argument\n{USAGE}\n")
        return 2
    prepare()
    if option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(rest[0], "<string>", "exec", dont_inherit=True), vars(module))  # noqa: S102
    else:
        sys.argv = sys.argv[1:]
        # The program's own directory comes first, as if python had been called with it.
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = str(Path(option).resolve().parent)
        runpy.run_path(option, run_name="__main__")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
