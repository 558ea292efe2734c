"""Loading of the CPU kernels: what is chosen, and what happens when they cannot be used."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from bnbx import backends, codebooks, ops

REPORT = """
import json, sys, torch, bnbx
from bnbx.backends import BACKENDS
cpu, *_, reference = BACKENDS
codes, absmax = torch.ops.bnbx.quantize_4bit(torch.full((3,), 2.0), 64, "nf4", torch.uint8)
report = {"operations": len(cpu.operations), "reason": cpu.reason, **cpu.details}
print(json.dumps({**report, "codes": codes.flatten().tolist(), "absmax": absmax.tolist()}))
"""
UNUSABLE = """
import importlib.abc, sys
class Unusable(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "bnbx._ext._cpu":
            raise {error}
sys.meta_path.insert(0, Unusable())
"""

needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("bnbx._ext._cpu") is None, reason="the kernels are not built"
)


def python(code, **env):
    """Run code in a fresh interpreter; return what it reports and what it warned of."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BNBX_")}
    done = subprocess.run(  # noqa: S603 (our own code)
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **env},
    )
    warned = [line for line in done.stderr.splitlines() if "Warning: " in line]
    return json.loads(done.stdout), warned


def check_reference(report):
    assert report["operations"] == 0
    assert "isa" not in report
    check_result(report)


def check_result(report):
    assert (report["codes"], report["absmax"]) == ([0xFF, 0xF7], [2.0])


def test_reference_on_request():
    report, warned = python(REPORT, BNBX_REFERENCE="1")
    check_reference(report)
    assert report["reason"] == "switched off by BNBX_REFERENCE=1"
    assert not warned


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'bnbx._ext._cpu'"),
        ImportError("undefined symbol: GOMP_parallel"),
        OSError("libgomp.so.1: cannot open shared object file"),
        SystemError("initialization failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_kernels_that_cannot_be_loaded(error):
    report, warned = python(UNUSABLE.format(error=repr(error)) + REPORT)
    check_reference(report)
    assert report["reason"] == f"{type(error).__name__}: {error}"
    assert len(warned) == 1
    assert "RuntimeWarning" in warned[0]
    assert str(error) in warned[0]


@needs_kernels
def test_the_best_instruction_set_is_chosen():
    report, warned = python(REPORT)
    assert report["operations"] == len(ops.CONTRACTS)
    assert report["isa"] == report["available_isas"][0]
    assert report["available_isas"][-1] == "scalar"
    assert not warned
    check_result(report)


@needs_kernels
@pytest.mark.parametrize("forced", ["scalar", "avx2"])
def test_an_instruction_set_can_be_forced(forced):
    available = next(b for b in backends.BACKENDS if b.name == "cpu").details["available_isas"]
    if forced not in available:
        pytest.skip(f"this machine has no {forced}")
    report, warned = python(REPORT, BNBX_FORCE_ISA=forced)
    assert report["isa"] == forced
    assert report["available_isas"] == available
    assert not warned
    check_result(report)


@needs_kernels
def test_an_unknown_instruction_set_leaves_the_reference_and_one_warning():
    report, warned = python(REPORT, BNBX_FORCE_ISA="nonsense")
    check_reference(report)
    assert len(warned) == 1
    assert "'nonsense'" in warned[0]
    assert "scalar" in warned[0]  # the choices


@needs_kernels
def test_an_empty_choice_is_none():
    report, warned = python(REPORT, BNBX_FORCE_ISA="", BNBX_REFERENCE="0")
    assert report["isa"] == report["available_isas"][0]
    assert not warned


@needs_kernels
def test_select_isa_refuses_what_the_machine_lacks():
    ext = importlib.import_module("bnbx._ext._cpu")
    before = ext.describe()
    with pytest.raises(ValueError, match="isa: expected one of .*scalar.*, got 'mmx'"):
        ext.select_isa("mmx")
    assert ext.describe() == before


@needs_kernels
def test_kernels_have_the_same_4bit_tables():
    ext = importlib.import_module("bnbx._ext._cpu")
    for number, quant_type in enumerate(codebooks.QUANT_TYPES_4BIT):
        expected = codebooks.get_4bit_type(quant_type)
        assert ext.codebook_4bit(number) == expected.tolist()


@needs_kernels
def test_the_numbers_of_the_interface_stand_in_one_order():
    """bnbx::DType, QuantType and OptimizerRule are counted as bnbx.backends.native counts them."""
    ext = importlib.import_module("bnbx._ext._cpu")
    assert set(ext.operations()) == set(ops.CONTRACTS)
    assert list(backends.native.DTYPES) == [torch.float32, torch.float16, torch.bfloat16]


def test_every_operation_has_a_reference():
    reference = next(b for b in backends.BACKENDS if b.name == "reference")
    assert set(reference.operations) == set(ops.CONTRACTS)
    for name in ops.CONTRACTS:
        assert callable(getattr(backends.reference, name.replace(".", "_")))
