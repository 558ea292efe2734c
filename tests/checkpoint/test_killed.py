"""A process that is stopped in the middle of its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

if sys.platform == "win32":
    pytest.skip("Windows has no such signals", allow_module_level=True)


#: A shell has a program that it starts in the background, such as these tests, ignore Ctrl-C.
PROGRAM = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from bnbx.cli import main
raise SystemExit(main())"""


@pytest.fixture
def source(tmp_path):
    """Return a file whose quantization takes some seconds, in its own directory."""
    weight = torch.randn(512, 1024).to(torch.bfloat16)
    tensors = {f"layers.{i}.proj.weight": weight.clone() for i in range(60)}
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "a.safetensors")
    return tmp_path / "in" / "a.safetensors"


def start(source, dst):
    # The kernels are switched off, to have time to stop it.
    return subprocess.Popen(  # noqa: S603 (our own program)
        [sys.executable, "-c", PROGRAM, "quantize", str(source), str(dst)],
        env={**os.environ, "BNBX_REFERENCE": "1", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_data(process, directory):
    """Wait until some, but not all, of the data is written."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        if any(path.stat().st_size > 2**20 for path in directory.glob(".*/*")):
            return
        time.sleep(0.01)
    raise AssertionError


def test_killed(tmp_path, source):
    directory = tmp_path / "out"
    directory.mkdir()
    process = start(source, directory / "dst.safetensors")
    wait_for_data(process, directory)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = [path.name for path in directory.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".dst.safetensors.bnbx-")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped(tmp_path, source, number, status):
    directory = tmp_path / "out"
    directory.mkdir()
    process = start(source, directory / "dst.safetensors")
    wait_for_data(process, directory)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == status
    assert list(directory.iterdir()) == []
