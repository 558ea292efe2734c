"""What a built module for GPUs says, asked for in a process of its own, which sees no GPU."""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import subprocess
import sys

from bnbx import _ext

# A GPU that is there must not get pointers to the memory of the CPU.
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}

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
PAGED_MEMORY = """
import {module} as ext
for call in (ext.has_managed_memory, lambda: ext.PagedBlock(100, 0, True)):
    try:
        call()
    except RuntimeError as failure:
        print(failure)
"""


def output_of(*command, **env):
    """Return what a program prints."""
    env = {**os.environ, **HIDDEN, **env}
    done = subprocess.run(  # noqa: S603 (our own code, and a tool of the compiler)
        command, capture_output=True, text=True, check=True, env=env
    )
    return done.stdout


def described(module):
    """Return what the module says about itself where there is no torch."""
    code = f"import {module}, json; print(json.dumps({module}.describe()))"
    return json.loads(output_of(sys.executable, "-c", code, PYTHONPATH=_ext.__path__[0]))


def launched(module):
    """Return by operation what a launch has raised."""
    return json.loads(output_of(sys.executable, "-c", LAUNCHES.format(module=module)))


def paged(module):
    """Return what the two calls for paged memory have raised."""
    code = PAGED_MEMORY.format(module=module)
    return output_of(sys.executable, "-c", code, PYTHONPATH=_ext.__path__[0]).splitlines()


def needed(module):
    """Return the libraries that the module is linked with."""
    dynamic = output_of("readelf", "--dynamic", "--wide", _file_of(module))
    return re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)


def exported(module):
    """Return the symbols that other libraries see."""
    symbols = output_of("readelf", "--dyn-syms", "--wide", _file_of(module))
    rows = [line.split() for line in symbols.splitlines() if " UND " not in line]
    return {row[7] for row in rows if len(row) > 7 and row[4] in {"GLOBAL", "WEAK"}}


def _file_of(module):
    return importlib.machinery.PathFinder.find_spec(module, list(_ext.__path__)).origin
