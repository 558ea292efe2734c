"""A built CUDA module on a machine without a GPU: it loads, and says what is missing."""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from bnbx import _ext
from bnbx.backends import cuda_modules
from bnbx.ops import CONTRACTS

MODULES = [f"_cuda{major}{minor}" for major, minor in cuda_modules.installed()]
pytestmark = pytest.mark.skipif(not MODULES, reason="no CUDA module is built")
each_module = pytest.mark.parametrize("module", MODULES)

# Every operation of a module, on tensors of the CPU, which no kernel gets to see.
LAUNCHES = """
import importlib, inspect, json, sys, torch
import bnbx
from bnbx.backends.native_grouped import NativeGroupedBackend
from bnbx.ops import CONTRACTS
from bnbx.conformance.samples import arguments
ext = importlib.import_module("bnbx._ext.{module}")
backend = NativeGroupedBackend(ext, lambda _: 0)
said = {{}}
for name in ext.operations():
    contract = CONTRACTS[name]
    given = inspect.signature(contract).bind(**arguments(name)).arguments
    out = {{"out": given.pop("out")}} if name.endswith(".out") else {{}}
    outputs = contract(*given.values(), **out)
    try:
        backend.kernel(name.replace(".", "_"))(outputs, *given.values(), **out)
        said[name] = "nothing"
    except Exception as failure:
        said[name] = type(failure).__name__ + ": " + str(failure)
print(json.dumps(said))
"""


def file_of(module):
    return importlib.machinery.PathFinder.find_spec(module, list(_ext.__path__)).origin


def output_of(*command, **env):
    # A GPU that is there must not get pointers to the memory of the CPU.
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **env}
    done = subprocess.run(  # noqa: S603 (our own code, and a tool of the compiler)
        command, capture_output=True, text=True, check=True, env=env
    )
    return done.stdout


@each_module
def test_it_loads_without_torch_and_says_what_it_is(module):
    code = f"import {module}, json; print(json.dumps({module}.describe()))"
    found = json.loads(output_of(sys.executable, "-c", code, PYTHONPATH=_ext.__path__[0]))
    toolkit = f"cuda {module[5:7]}.{module[7:]}"
    assert found == {"isa": toolkit, "available_isas": [toolkit]}


@each_module
def test_a_launch_says_what_is_missing(module):
    said = json.loads(output_of(sys.executable, "-c", LAUNCHES.format(module=module)))
    assert set(said) <= set(CONTRACTS)
    assert said
    for name, message in said.items():
        assert re.match(r"RuntimeError: .*CUDA error \d+ \(cudaError\w+\)", message), name
        assert re.search("driver is missing or older|driver sees no GPU", message), name


@each_module
def test_paged_memory_says_what_is_missing(module):
    code = f"""
import {module} as ext
for call in (ext.has_managed_memory, lambda: ext.PagedBlock(100, 0, True)):
    try:
        call()
    except RuntimeError as failure:
        print(failure)
"""
    said = output_of(sys.executable, "-c", code, PYTHONPATH=_ext.__path__[0]).splitlines()
    assert len(said) == 2
    for message in said:
        assert re.search(r"CUDA error \d+ .*driver (is missing or older|sees no GPU)", message)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
@each_module
def test_no_cuda_library_is_linked(module):
    dynamic = output_of("readelf", "--dynamic", "--wide", file_of(module))
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert any(name.startswith("libc.so") for name in needed)
    assert not [name for name in needed if re.match(r"lib(cu|nv)", name)]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
@each_module
def test_others_see_nothing_but_the_module(module):
    symbols = output_of("readelf", "--dyn-syms", "--wide", file_of(module))
    rows = [line.split() for line in symbols.splitlines() if " UND " not in line]
    exported = {row[7] for row in rows if len(row) > 7 and row[4] in {"GLOBAL", "WEAK"}}
    assert {name for name in exported if re.search("bnbx|cuda|PyInit", name)} == {
        f"PyInit_{module}"
    }
