"""`python -m bnbx.compat`: a program and its child processes with bnbx as their bitsandbytes."""

from __future__ import annotations

import os
import subprocess
import sys

from .processes import other_bitsandbytes, python

CHILD = """
import importlib.metadata, bitsandbytes, bnbx
print(bitsandbytes.nn is bnbx.nn, importlib.metadata.version("bitsandbytes"))
"""
PROGRAM = f"""
import multiprocessing, os, subprocess, sys

def child(queue):
    import bitsandbytes, bnbx
    queue.put((bitsandbytes.nn is bnbx.nn, bitsandbytes.__version__))

if __name__ == "__main__":
    import helper
    import bitsandbytes, bnbx
    assert bitsandbytes.nn is bnbx.nn
    print(sys.argv[1:], os.path.basename(sys.argv[0]), os.path.basename(__file__))
    print(subprocess.check_output([sys.executable, "-c", {CHILD!r}], text=True).strip())
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(*queue.get(timeout=120))
        process.join()
    raise SystemExit(7)
"""


def test_script_with_child_processes(tmp_path):
    directory = tmp_path / "scripts"
    directory.mkdir()
    script = directory / "train.py"
    script.write_text(PROGRAM)
    directory.joinpath("helper.py").write_text("")  # beside the script, as python finds it
    site = tmp_path / "site"
    site.mkdir()
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-m", "bnbx.compat", str(script), "--lr", "1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": other_bitsandbytes(site)},
    )
    assert done.returncode == 7, done.stderr
    expected = ["['--lr', '1'] train.py train.py", *["True 0.50.2"] * 3]
    assert done.stdout.splitlines() == expected


def test_module(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    package.joinpath("__main__.py").write_text(
        "import sys, bitsandbytes; print(bitsandbytes.__version__, __spec__.name, sys.argv[1:])"
    )
    package.joinpath("__init__.py").write_text("")
    out = python("-m", "bnbx.compat", "-m", "package", "-m", "x", cwd=tmp_path)
    assert out.strip() == "0.50.2 package.__main__ ['-m', 'x']"


def test_code():
    out = python("-m", "bnbx.compat", "-c", "import sys, bitsandbytes as b; print(sys.argv)", "x")
    assert out.strip() == "['-c', 'x']"


def test_wrong_calls_print_the_usage():
    for arguments, expected in (((), 2), (("-m",), 2), (("--help",), 0), (("none.py",), 1)):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "bnbx.compat", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expected
        assert ("none.py" if "none.py" in arguments else "usage: ") in done.stderr
