# ruff: noqa: ARG001, ARG002 (the parameters are those of the operations)
"""bnbx.backends.register: what is refused, and a backend of its own on a device in Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bnbx
from bnbx import backends
from bnbx.backends import BACKENDS, register, unregister
from bnbx.cli.info import collect, render

ROOT = Path(__file__).parents[2]
#: Known to every torch, and here without a device.
DEVICE = "hpu"


def int8_linear_matmul(A, B):
    return A, B


def dequantize_blockwise_out(A, absmax, code, blocksize, dtype, *, out):
    out.copy_(A)


def kernels(**functions):
    return SimpleNamespace(**(functions or {"int8_linear_matmul": int8_linear_matmul}))


@pytest.fixture
def registered():
    yield register(DEVICE, kernels(), name="gaudi")
    unregister(DEVICE)


def is_registered(operation):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"bnbx::{operation}", "HPU")


def test_its_operations_are_in_the_dispatcher_until_it_is_unregistered():
    backend = register(
        DEVICE,
        kernels(
            int8_linear_matmul=int8_linear_matmul,
            dequantize_blockwise_out=dequantize_blockwise_out,
            _helper=print,
        ),
    )
    operations = ("dequantize_blockwise.out", "int8_linear_matmul")
    assert backend == backends.Backend(DEVICE, DEVICE, operations)
    assert BACKENDS[-2] is backend
    assert all(map(is_registered, operations))
    assert not is_registered("gemm_4bit")
    unregister(DEVICE)
    assert backend not in BACKENDS
    assert not any(map(is_registered, operations))


def test_a_module_is_an_implementation_too(tmp_path, monkeypatch):
    imports = "from math import prod\nfrom torch import Tensor\n"
    function = "def int8_linear_matmul(A, B):\n    return A\n"
    (tmp_path / "hpu_kernels.py").write_text(imports + function)
    monkeypatch.syspath_prepend(tmp_path)
    backend = register(DEVICE, __import__("hpu_kernels"))
    unregister(DEVICE)
    assert backend.operations == ("int8_linear_matmul",)


@pytest.mark.usefixtures("registered")
def test_the_report_shows_it():
    report = collect()
    assert report["operations"]["int8_linear_matmul"][-2:] == ["gaudi", "reference"]
    lines = {line.split()[0]: line.split() for line in render(report).splitlines() if line.strip()}
    assert lines["Operations"][-2:] == ["gaudi", "reference"]
    assert lines["int8_linear_matmul"][-2:] == ["yes", "yes"]
    assert lines["gemm_4bit"][-2:] == ["reference", "yes"]
    assert lines["gaudi"] == ["gaudi", "device", DEVICE, "loaded"]


def test_switched_off_it_is_shown_and_not_used(monkeypatch):
    monkeypatch.setenv("BNBX_REFERENCE", "1")
    backend = register(DEVICE, kernels())
    assert (backend.operations, backend.reason) == ((), "switched off by BNBX_REFERENCE=1")
    assert not is_registered("int8_linear_matmul")
    unregister(DEVICE)
    assert backend not in BACKENDS


class Untyped:
    def quantise_4bit(self, A):
        return A


class Shorter:
    def int8_linear_matmul(self, A):
        return A


class Swapped:
    def int8_linear_matmul(self, B, A):
        return A


class WithoutOut:
    def dequantize_blockwise_out(self, A, absmax, code, blocksize, dtype):
        return A


WRONG = [
    ("nonsense", kernels(), "device_type: .* this torch knows, got 'nonsense'. Name it first"),
    ("meta", kernels(), "device_type: expected the type of a device that holds data"),
    (f"{DEVICE}:0", kernels(), "device_type: expected .* without an index, got 'hpu:0'"),
    (DEVICE, Untyped(), "implementation: .*got 'quantise_4bit'. Did you mean quantize_4bit"),
    (DEVICE, Shorter(), r"int8_linear_matmul: expected the parameters \(A, B\), got \(A\)"),
    (DEVICE, Swapped(), r"int8_linear_matmul: expected the parameters \(A, B\), got \(B, A\)"),
    (DEVICE, WithoutOut(), r"blockwise_out: expected the parameters \(A, .*dtype, \*, out\), got"),
    (DEVICE, kernels(_helper=print), "implementation: expected at least one function named like"),
]


@pytest.mark.parametrize(("device_type", "implementation", "message"), WRONG)
def test_refuses(device_type, implementation, message):
    before = list(BACKENDS)
    with pytest.raises(ValueError, match=message):
        register(device_type, implementation)
    assert before == BACKENDS
    assert not is_registered("int8_linear_matmul")


def test_refuses_a_name_that_another_one_has():
    with pytest.raises(ValueError, match="name: expected a name that no backend has yet, got 'ref"):
        register(DEVICE, kernels(), name="reference")


@pytest.mark.usefixtures("registered")
def test_refuses_a_device_that_another_one_serves():
    with pytest.raises(ValueError, match="no other backend serves, got 'hpu', which 'gaudi' serve"):
        register(DEVICE, kernels(), name="other")


def test_refuses_to_unregister_what_is_not_registered():
    with pytest.raises(ValueError, match="device_type: expected one that register was given"):
        unregister("cpu")


def python(*arguments, **env):
    """Run this interpreter in the root of the repository; return what it has done."""
    package = str(Path(bnbx.__file__).parents[1])
    path = os.pathsep.join([package, str(ROOT)])
    return subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **env},
    )


def test_the_documented_backend_passes_the_selftest():
    """And so does the reference, which serves the device's other operations."""
    module = "tests.backends.documented_backend"
    options = ("--quick", "--json", "--import", module, "--device", "npu")
    done = python("-m", "bnbx", "selftest", *options)
    assert done.returncode == 0, done.stderr
    line, _, report = done.stdout.partition("\n")  # the line is what the block prints
    assert f"```output\n{line}\n```" in (ROOT / "docs" / "backends.md").read_text()
    rows = json.loads(report)["devices"]["npu"]
    own = {row["operation"] for row in rows if row["backend"] == "npu-kernels"}
    assert own == {"dequantize_4bit", "int8_linear_matmul"}
    others = {row["operation"] for row in rows if row["backend"] == "reference"}
    assert own | others == set(bnbx.ops.CONTRACTS)


#: A part of tests/ops for each family; each test runs on the device.
CONFORMANCE = {
    "dequantize_4bit": "test_blocksizes or test_sizes or test_strides",
    "quantize_4bit": "test_sizes or not_finite or zero_block",
    "int8_linear_matmul": "test_product or strides",
    "int8_linear": "bias_of_another or leading",
    "optimizer_update_32bit": "every_rule",
}


def test_the_documented_backend_passes_the_tests_of_the_operations():
    files = [f"tests/ops/test_{name}.py" for name in CONFORMANCE]
    chosen = " or ".join(f"(test_{name}.py and ({tests}))" for name, tests in CONFORMANCE.items())
    options = ("-p", "tests.backends.documented_backend", "--device", "npu", "-k", chosen)
    done = python("-m", "pytest", "-q", "-W", "error", *options, *files)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50
    assert not re.search("failed|skipped", done.stdout)
