"""docs/command_line.md: its commands are commands, every argument is there, its program runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bnbx import cli

DOCUMENT = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
LINES = re.findall(
    r"^bnbx .*$",
    "\n".join(re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)),
    re.MULTILINE,
)


@pytest.mark.parametrize("line", LINES)
def test_commands_are_commands(line):
    _, command, *arguments = shlex.split(line)
    options = cli._parser().parse_args([command, *arguments])
    assert options.command == command


def test_every_command_is_shown():
    assert {line.split()[1] for line in LINES} == set(cli.COMMANDS)


def test_every_argument_of_quantize_is_in_the_table():
    parser = cli._parser()
    options = vars(parser.parse_args(["quantize", "a", "b"])).keys()
    names = {f"--{name.replace('_', '-')}" for name in options}
    section = DOCUMENT.split("## Quantizing a checkpoint")[1].split("\n## ")[0]
    table = set(re.findall(r"^\| `(--[a-z-]+)`", section, re.MULTILINE))
    assert names - table == {"--src", "--dst", "--command", "--json", "--no-progress"}
    assert table <= names


def test_every_exit_status_is_in_the_table():
    table = DOCUMENT.split("| status | meaning |")[1].split("##")[0]
    assert re.findall(r"^\| ([0-9, ]+) \|", table, re.MULTILINE) == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "130, 143",
    ]
    statuses = (cli.REFUSED, cli.MISSING_PACKAGE, cli.SYSTEM_ERROR)
    assert [f"| {status} | " in table for status in statuses] == [True] * 3


def test_the_program_runs(tmp_path):
    programs = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(programs) == 1
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", programs[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 quantized weights" in done.stdout
