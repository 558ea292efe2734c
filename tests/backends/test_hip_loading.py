"""Which torch the HIP module serves, and what is said about it to the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from bnbx.backends import hip
from bnbx.backends.cuda_choice import decodes_first

# A process in which torch says what it is built for, and the package has a HIP module or none.
FAKE = """
import importlib.abc, importlib.machinery, json, pkgutil, sys, types, torch

class Fakes(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == "bnbx._ext._hip":
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.operations = lambda: ["quantize_4bit", "optimizer_update_32bit"]
        module.describe = lambda: {{"isa": "hip 6.4", "available_isas": ["hip 6.4"]}}
        module.read_tensors_by = lambda table, device: devices.append(device)
        return module

    def exec_module(self, module):
        {exec_module}

devices = []
sys.meta_path.insert(0, Fakes())
if not {is_installed}:
    sys.modules["bnbx._ext._hip"] = None
torch.version.cuda, torch.version.hip = {cuda!r}, {hip!r}
import bnbx
from bnbx.backends import BACKENDS
from bnbx.backends.paged_memory import PAGED_DEVICES
from bnbx.cli.info import collect, render
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
print(json.dumps({{
    "loaded": [[b.name, b.device_type, list(b.operations)] for b in BACKENDS if b.name == "hip"],
    "registered": has_kernel("bnbx::quantize_4bit", "CUDA"),
    "paged": list(PAGED_DEVICES),
    "devices": devices,
    "line": next((line for line in render(collect()).splitlines() if " hip" in line), ""),
}}))
"""


def python(is_installed, cuda=None, hip=None, exec_module="pass", **env):
    """Import bnbx in a fresh interpreter; return what is said about HIP, and the warnings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BNBX_")}
    code = FAKE.format(is_installed=is_installed, cuda=cuda, hip=hip, exec_module=exec_module)
    done = subprocess.run(  # noqa: S603 (our own code)
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **env},
    )
    warned = [line for line in done.stderr.splitlines() if "Warning: " in line]
    return json.loads(done.stdout), [line for line in warned if "CPU" not in line]


def test_a_torch_for_rocm_has_it_on_its_device_cuda():
    report, warned = python(True, hip="6.4.4")
    operations = ["quantize_4bit", "optimizer_update_32bit"]
    assert report["loaded"] == [["hip", "cuda", operations]]
    assert report["registered"]
    assert report["paged"] == ["cuda"]
    assert report["devices"] == [10]  # kDLROCM
    assert "loaded, hip 6.4" in report["line"]
    assert not warned


@pytest.mark.parametrize("cuda", [None, "13.0"], ids=["cpu", "cuda"])
def test_other_builds_of_torch_never_load_it(cuda):
    report, warned = python(True, cuda=cuda, exec_module="raise SystemError")
    assert not report["registered"]
    assert "not loaded: torch 2" in report["line"]
    assert report["line"].endswith("is built without ROCm")
    assert not warned


def test_a_package_and_a_torch_without_it_have_no_line():
    report, _ = python(False, cuda="13.0")
    assert (report["loaded"], report["line"]) == ([], "")


def test_a_package_without_it_is_silent_until_it_is_used():
    report, warned = python(False, hip="6.4.4")
    assert not report["registered"]
    assert report["line"].endswith("not loaded: this bnbx was built without them")
    assert not warned


def test_a_module_that_cannot_be_loaded_warns_and_leaves_the_reference():
    broken = 'raise ImportError("libamdhip64.so.7: cannot open shared object file")'
    report, warned = python(True, hip="6.4.4", exec_module=broken)
    assert not report["registered"]
    assert "not loaded: ImportError: libamdhip64.so.7" in report["line"]
    assert len(warned) == 1
    assert "without its HIP kernels" in warned[0]
    assert "COMPUTE_BACKEND=hip" in warned[0]


MAPS = """\
7f00-7f01 r-xp 00000000 08:01 1 /venv/torch/lib/libamdhip64.so
7f01-7f02 r--p 00001000 08:01 1 /venv/torch/lib/libamdhip64.so
7f02-7f03 r-xp 00000000 08:01 2 /usr/lib/libc.so.6
"""


def test_one_runtime_serves_torch_and_the_module():
    hip._check_runtime("hip 6.4", MAPS)


def test_two_runtimes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4.4")
    two = MAPS + "7f03-7f04 r-xp 00000000 08:01 3 /opt/rocm/lib/libamdhip64.so.7.0\n"
    expected = (
        r"built with hip 7.0, torch for 6.4.4, .*\(/opt/rocm/lib/libamdhip64.so.7.0, "
        r"/venv/torch/lib/libamdhip64.so\). Build bnbx with the ROCm release of torch"
    )
    with pytest.raises(ImportError, match=expected):
        hip._check_runtime("hip 7.0", two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_of_many_rows_are_left_to_torch(dtype):
    capability = hip.HipBackend.capability(None, 0)
    decodes = [decodes_first(capability, dtype, rows, [4096, 4096]) for rows in (1, 4, 32)]
    assert decodes == [False, False, True]
