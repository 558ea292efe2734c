"""`import bnbx` is quiet, light and complete."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

import bnbx

NEW_MODULES = """
import json, sys
import torch
before = set(sys.modules)
import bnbx
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def python(code, **env):
    """Run code in a fresh interpreter and return its stdout and stderr."""
    done = subprocess.run(  # noqa: S603 (our own code)
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **env},
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("reference", ["0", "1"])
def test_prints_nothing(reference):
    if reference == "0" and importlib.util.find_spec("bnbx._ext._cpu") is None:
        pytest.skip("without the kernels it warns")
    assert python("import bnbx", BNBX_REFERENCE=reference) == python("import torch")


def test_brings_nothing_but_the_standard_library():
    stdout, _ = python(NEW_MODULES)
    new = set(json.loads(stdout)) - {"bnbx"}
    cython = {name for name in new if name.startswith(("cython_runtime", "_cython"))}
    assert new - cython <= sys.stdlib_module_names


def test_every_public_name_is_there():
    assert len(set(bnbx.__all__)) == len(bnbx.__all__)
    for name in bnbx.__all__:
        assert hasattr(bnbx, name), name


def test_version_is_a_version():
    assert all(part.isdigit() for part in bnbx.__version__.split(".")[:2])
