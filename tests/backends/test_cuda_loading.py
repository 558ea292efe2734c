"""Which module of CUDA kernels is loaded, for which torch, and what is said about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bnbx.backends import cuda_modules

# A process in which torch says that it is for a version of CUDA, and the package has modules that
# are not there. Their launches say what the real ones say on a machine without a driver.
FAKE = """
import importlib.abc, importlib.machinery, json, pkgutil, sys, types, torch

class Fakes(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("bnbx._ext._cuda"):
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        toolkit = "cuda " + spec.name[15:17] + "." + spec.name[17:]
        module.operations = lambda: ["quantize_4bit", "optimizer_update_32bit"]
        module.describe = lambda: {{"isa": toolkit, "available_isas": [toolkit]}}
        module.read_tensors_by = lambda table, device: None
        return module

    def exec_module(self, module):
        {exec_module}

sys.meta_path.insert(0, Fakes())
sys.modules["bnbx._ext._hip"] = None  # not found, also where it is built
torch.version.cuda, torch.version.hip = {cuda!r}, {hip!r}
iter_modules = pkgutil.iter_modules
pkgutil.iter_modules = lambda path=None, prefix="": [
    types.SimpleNamespace(name="_cuda" + version) for version in {modules!r}
] if path and path[0].endswith("_ext") else iter_modules(path, prefix)
import bnbx
from bnbx.backends import BACKENDS
from bnbx.cli.info import collect, render
cuda = [b for b in BACKENDS if b.device_type == "cuda"]
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
print(json.dumps({{
    "loaded": [[b.name, list(b.operations), b.reason, b.details] for b in cuda],
    "registered": has_kernel("bnbx::quantize_4bit", "CUDA"),
    "line": next((line for line in render(collect()).splitlines() if "device cuda" in line), ""),
}}))
"""


def python(modules, cuda, hip=None, exec_module="pass", **env):
    """Import bnbx in a fresh interpreter; return what is said about CUDA, and the warnings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BNBX_")}
    code = FAKE.format(modules=modules, cuda=cuda, hip=hip, exec_module=exec_module)
    done = subprocess.run(  # noqa: S603 (our own code)
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **env},
    )
    warned = [line for line in done.stderr.splitlines() if "Warning: " in line]
    return json.loads(done.stdout), [line for line in warned if "CPU" not in line]


def versions(*names):
    return [(int(name[:2]), int(name[2:])) for name in names]


@pytest.mark.parametrize(
    ("available", "torch_cuda", "module"),
    [
        (["130"], "13.0", "_cuda130"),
        (["118", "124", "130"], "12.4", "_cuda124"),
        (["124", "126", "128"], "12.6", "_cuda126"),
        (["124", "128"], "12.6", "_cuda124"),  # what torch's driver surely knows
        (["128", "129"], "12.6", "_cuda128"),  # newer, but of the same major version
        (["118"], "12.8", "_cuda118"),  # drivers run what is older
        (["118", "130"], "12.8", "_cuda118"),
        (["124", "130"], "13.2", "_cuda130"),
        (["129", "1210"], "12.12", "_cuda1210"),
    ],
)
def test_the_best_module_is_chosen(monkeypatch, available, torch_cuda, module):
    monkeypatch.delenv(cuda_modules.VARIABLE, raising=False)
    assert cuda_modules.choose(versions(*available), torch_cuda).module == module


@pytest.mark.parametrize(
    ("available", "torch_cuda", "message"),
    [
        ([], "13.0", "built without them"),
        (["130"], "12.8", "they are for CUDA 13.0, torch is for 12.8.*BNBX_CUDA_VERSION"),
        (["124"], "11.8", "they are for CUDA 12.4, torch is for 11.8"),
    ],
)
def test_none_fits(monkeypatch, available, torch_cuda, message):
    monkeypatch.delenv(cuda_modules.VARIABLE, raising=False)
    with pytest.raises(LookupError, match=message):
        cuda_modules.choose(versions(*available), torch_cuda)


@pytest.mark.parametrize("forced", ["12.4", "124", "12.4.1"])
def test_a_version_can_be_forced(monkeypatch, forced):
    monkeypatch.setenv(cuda_modules.VARIABLE, forced)
    choice = cuda_modules.choose(versions("118", "124", "130"), "13.0")
    assert choice == ("_cuda124", "forced by BNBX_CUDA_VERSION")


@pytest.mark.parametrize("forced", ["12.8", "newest", "12"])
def test_a_forced_version_that_is_not_there(monkeypatch, forced):
    monkeypatch.setenv(cuda_modules.VARIABLE, forced)
    expected = f"BNBX_CUDA_VERSION: expected one of 11.8, 13.0, .*got '{forced}'"
    with pytest.raises(ValueError, match=expected):
        cuda_modules.choose(versions("118", "130"), "13.0")


def test_what_was_chosen_is_shown():
    report, warned = python(["118", "126", "130"], "12.8")
    ((name, operations, reason, details),) = report["loaded"]
    assert (name, reason) == ("cuda126", "")
    assert operations == ["quantize_4bit", "optimizer_update_32bit"]
    assert details["isa"] == "cuda 12.6"
    assert report["registered"]
    assert not warned
    assert "cuda126" in report["line"]
    assert "loaded, cuda 12.6 (available: cuda 13.0, cuda 12.6, cuda 11.8)" in report["line"]
    assert report["line"].endswith("the newest not above torch's CUDA 12.8")


@pytest.mark.parametrize(("cuda", "hip"), [(None, None), (None, "6.4.4")], ids=["cpu", "rocm"])
def test_other_builds_of_torch_never_see_it(cuda, hip):
    report, warned = python(["130"], cuda, hip, exec_module="raise SystemError")
    assert not report["registered"]
    assert "not loaded: torch 2" in report["line"]
    assert "is built without CUDA" in report["line"]
    assert not warned


def test_a_package_and_a_torch_without_cuda_have_no_line():
    report, warned = python([], None)
    assert report == {"loaded": [], "registered": False, "line": ""}
    assert not warned


def test_a_package_without_cuda_is_silent_until_it_is_used():
    report, warned = python([], "13.0")
    assert not report["registered"]
    assert report["line"].endswith("not loaded: this bnbx was built without them")
    assert not warned


def test_a_forced_version_that_is_not_there_warns_and_leaves_the_reference():
    report, warned = python(["118", "130"], "13.0", BNBX_CUDA_VERSION="12.4")
    assert not report["registered"]
    message = "BNBX_CUDA_VERSION: expected one of 11.8, 13.0, which this bnbx has kernels for"
    assert message in report["line"]
    assert len(warned) == 1
    assert message in warned[0]


def test_a_module_that_cannot_be_loaded_warns_and_leaves_the_reference():
    broken = 'raise OSError("libc.so.6: version `GLIBC_2.38\' not found")'
    report, warned = python(["130"], "13.0", exec_module=broken)
    assert not report["registered"]
    assert "not loaded: OSError: libc.so.6" in report["line"]
    assert len(warned) == 1
    assert "without its CUDA kernels" in warned[0]
    assert "GLIBC_2.38" in warned[0]


def test_the_reference_on_request():
    report, warned = python(["130"], "13.0", exec_module="raise SystemError", BNBX_REFERENCE="1")
    assert not report["registered"]
    assert report["line"].endswith("not loaded: switched off by BNBX_REFERENCE=1")
    assert not warned
