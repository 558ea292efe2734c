"""`python -m bnbx`: versions, backends and operations."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import bnbx
from bnbx.backends import BACKENDS
from bnbx.cli import main
from bnbx.ops import CONTRACTS


def command(*arguments, **env):
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-W", "ignore", "-m", "bnbx", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **env},
    )
    return done.stdout


def check(report):
    assert report["bnbx"] == bnbx.__version__
    assert report["torch"] == torch.__version__
    assert report["python"] == sys.version.split()[0]
    assert set(report["operations"]) == set(CONTRACTS)
    names = [backend["name"] for backend in report["backends"]]
    assert (names[0], names[-1]) == ("cpu", "reference")
    for backends in report["operations"].values():
        assert backends[-1] == "reference"
        assert set(backends) <= set(names)


@pytest.mark.parametrize("arguments", [["info", "--json"], ["--json"]])
def test_json(capsys, arguments):
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    check(report)
    assert report["threads"] == torch.get_num_threads()
    cpu = next(backend for backend in BACKENDS if backend.name == "cpu")
    shown = report["backends"][0]
    assert shown["loaded"] == (not cpu.reason)
    assert (shown.get("isa") in shown.get("available_isas", [])) == shown["loaded"]


@pytest.mark.parametrize("arguments", [[], ["info"]])
def test_table(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert f"bnbx {bnbx.__version__}, torch {torch.__version__}" in out
    for name in CONTRACTS:
        assert lines[name].split()[-1] == "yes"  # the reference has everything
    for backend in BACKENDS:
        assert f"device {backend.device_type}" in lines[backend.name]
        assert (backend.reason or "loaded") in lines[backend.name]


def test_as_a_module():
    report = json.loads(command("info", "--json", BNBX_FORCE_ISA="scalar"))
    check(report)
    assert report["environment"]["BNBX_FORCE_ISA"] == "scalar"


def test_says_why_a_backend_is_not_loaded():
    report = json.loads(command("--json", BNBX_REFERENCE="1"))
    check(report)
    cpu = report["backends"][0]
    assert not cpu["loaded"]
    assert cpu["reason"] == "switched off by BNBX_REFERENCE=1"
    assert all(backends == ["reference"] for backends in report["operations"].values())


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inform"])
    assert stopped.value.code == 2
    assert "'inform'" in capsys.readouterr().err
