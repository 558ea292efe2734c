"""The comparison with a base version; its clock is made up, for nothing asserts a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from against import Verdict

FOLDER = Path(__file__).parents[2] / "benchmarks"
OPERATION = "Linear4bit 64x64 M=1"
#: A clock by which every sample takes as long, whatever happens.
CLOCK = """
import itertools, time
ticks = itertools.count()
time.perf_counter = lambda: next(ticks) * {seconds}
"""


def site(folder: Path, seconds: float) -> str:
    """Return a folder for Python's path, which has samples take ``seconds``."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CLOCK.format(seconds=seconds))
    return str(folder)


def compare(tmp_path: Path, head: float, base: float) -> subprocess.CompletedProcess[str]:
    package = Path(__import__("bnbx").__file__).parents[1]  # may not be installed
    sites = [site(tmp_path / name, s) for name, s in (("head", head), ("base", base))]
    head_site, base_site = (f"{folder}{os.pathsep}{package}" for folder in sites)
    options = (base_site, f"--head={head_site}", f"--only={OPERATION}", "--rounds=3", "--threads=1")
    command = [sys.executable, FOLDER / "against.py", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


def test_planted_slowdown_fails_by_name(tmp_path):
    done = compare(tmp_path, head=1.25, base=1.0)
    assert done.returncode == 1
    assert f"| {OPERATION} | 1.25 **slower** | 0.00 |" in done.stdout
    assert OPERATION in done.stderr.splitlines()[-1]


def test_equal_build_passes(tmp_path):
    done = compare(tmp_path, head=1.0, base=1.0)
    assert done.returncode == 0, done.stderr
    assert f"| {OPERATION} | 1.00 | 0.00 |" in done.stdout


@pytest.mark.parametrize("head", [1.0, 1.0625, 0.5])
def test_equal_and_faster_are_not_slower(head):
    assert not Verdict.of([(head, 1.0, 1.0)] * 9).slower


def test_what_the_base_differs_from_itself_is_allowed():
    steady = [(1.2, 1.0, 1.0)] * 9
    noisy = [(1.2, 1.0, 1.0)] * 4 + [(1.2, 1.0, 1.15)] * 5
    assert Verdict.of(steady) == Verdict(1.2, 0.0)
    assert Verdict.of(steady).slower
    assert Verdict.of(noisy).noise == pytest.approx(0.15)
    assert not Verdict.of(noisy).slower


def test_one_odd_round_changes_nothing():
    rounds = [(1.0, 1.0, 1.0)] * 10 + [(9.0, 1.0, 9.0)]
    assert Verdict.of(rounds) == Verdict(1.0, 0.0)
