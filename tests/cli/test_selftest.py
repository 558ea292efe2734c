"""`python -m bnbx selftest`: what it shows, and that it finds kernels that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bnbx
from bnbx import conformance
from bnbx.backends import BACKENDS
from bnbx.cli import main
from bnbx.ops import CONTRACTS, FLOAT_DTYPES

ROOT = Path(__file__).parents[2]
CPU = BACKENDS[0]


def test_every_operation_is_tested_with_every_dtype():
    for quick in (False, True):
        found = {(case.operation, case.kind) for case in conformance.cases(quick=quick)}
        assert {operation for operation, _ in found} == set(CONTRACTS)
        for operation in CONTRACTS:
            kinds = {kind for name, kind in found if name == operation}
            dtypes = {str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES}
            assert kinds in ({"int8"}, dtypes)


def test_the_cases_are_the_same_each_time_and_leave_the_generator_alone():
    torch.manual_seed(0)
    first, second = (next(conformance.cases(quick=True)).call["A"] for _ in range(2))
    assert first.shape == second.shape
    after = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), after)


def test_json(capsys):
    arguments = ["selftest", "--quick", "--json", "--only", "int8_mm", "--device", "cpu"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failures"] == 0
    rows = report["devices"]["cpu"]
    assert {row["operation"] for row in rows} == {"int8_mm_dequant"}
    assert [row["kind"] for row in rows] == ["float32", "float16", "bfloat16"]
    isas = CPU.details.get("available_isas", [""])
    per_isa = sum(
        case.operation == "int8_mm_dequant" and case.kind == "float32"
        for case in conformance.cases(quick=True)
    )
    for row in rows:
        assert row["cases"] == per_isa * len(isas)
        assert row["backend"] == (CPU.name if CPU.operations else "reference")
        assert 0.0 < row["share"] <= 1.0
        assert 0.0 < row["error"] < 1e-2


def test_table(capsys):
    assert main(["selftest", "--quick", "--only", "quantize_4bit", "--only", "mm_"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cpu, served by ")
    cells = [line.split() for line in lines if line.startswith("quantize_4bit")]
    assert [cell[1] for cell in cells] == ["float32", "float16", "bfloat16"]
    assert {cell[-1] for cell in cells} == {"ok"}
    assert lines[-1].startswith("cpu: ")
    assert lines[-1].endswith("cases, all right")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "nonsense"], "--device: expected a device that this torch can use"),
        (["--device", "hpu"], "--device: expected a device that this torch can use"),
        (["--only", "gemm_5bit"], "--only: expected a part of the name of an operation"),
    ],
)
def test_refuses(capsys, arguments, message):
    assert main(["selftest", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_module_to_import_has_to_be_there(capsys):
    assert main(["selftest", "--import", "bnbx_for_nothing"]) == 3
    assert "bnbx_for_nothing" in capsys.readouterr().err


def selftest(*options):
    package = str(Path(bnbx.__file__).parents[1])
    return subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-W", "error", "-m", "bnbx", "selftest", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, str(ROOT)])},
    )


def test_wrong_kernels_are_found_and_named():
    options = ("--import", "tests.backends.faulty_backend", "--device", "npu", "--quick")
    done = selftest(*options)
    assert done.returncode == 1, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    failed = {cells[0] for cells in rows if "FAILED" in cells[:-1]}
    assert failed - {"npu:"} == {
        "quantize_4bit",
        "gemm_4bit",
        "int8_linear_matmul",
        "int8_vectorwise_dequant",
        "dequantize_blockwise",
        "optimizer_update_32bit",
    }
    # A kernel that raises is a row like others, and the rest goes on.
    assert "RuntimeError: the kernel of int8_linear_matmul cannot be launched" in done.stdout
    assert "stats has been changed" in done.stdout
    assert "result is torch.float32, not torch.float16" in done.stdout
    lion = [line for line in done.stdout.splitlines() if "lion" in line]
    assert lion
    assert all("state1" in line for line in lion)
    verdict = done.stdout.splitlines()[-1]
    assert all(name in verdict for name in failed - {"npu:"})
