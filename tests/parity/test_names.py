"""The names and signatures of bitsandbytes, beside those of bnbx under its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import names

bnb = pytest.importorskip("bitsandbytes")

MIGRATION = Path(__file__).parents[2] / "docs" / "migration.md"

#: Names of bitsandbytes that bnbx does not have. docs/migration.md says why and what to use.
LEFT_OUT = {
    "bitsandbytes.autograd._functions": {"GlobalOutlierPooler", "MatMul8bitFp"},
    "bitsandbytes.cextension": {
        "CudaBNBNativeLibrary",
        "ErrorHandlerMockBNBNativeLibrary",
        "XpuBNBNativeLibrary",
        "get_available_cuda_binary_versions",
        "get_cuda_bnb_library_path",
        "get_xpu_bnb_library_path",
        "parse_cuda_version",
    },
    "bitsandbytes.consts": {"NONPYTORCH_DOC_URL", "PACKAGE_GITHUB_URL"},
    "bitsandbytes.functional": {
        "C",
        "CUBLAS_Context",
        "FIRST_CUDA_DEVICE",
        "GlobalPageManager",
        "batched_igemm",
        "check_matmul",
        "elementwise_func",
        "fill",
        "get_paged",
        "has_avx512bf16",
        "igemm",
        "is_on_gpu",
        "name2qmap",
        "prefetch_tensor",
    },
    "bitsandbytes.nn.modules": {
        "fix_4bit_weight_quant_state_from_module",
        "maybe_rearrange_weight",
    },
    "bitsandbytes.optim.optimizer": {"MockArgs"},
    "bitsandbytes.utils": {"execute_and_return", "outlier_hook"},
}
#: Parameters that bnbx does not have, or with another default.
OTHER_PARAMETERS = {
    ("Adagrad8bit", "optim_bits"),  # says 8 there; either value is taken here
    ("BNBNativeLibrary", "lib"),  # bnbx has no library of C functions
    ("Optimizer2State", "alpha"),  # for AdEMAMix, which is a class of its own
    ("Optimizer2State", "t_alpha"),
    ("Optimizer2State", "t_beta3"),
    ("Optimizer8bit", "defaults"),  # the base class, whose constructor is not for users
    ("Optimizer8bit", "optim_bits"),
    ("Optimizer8bit", "is_paged"),
}


@pytest.fixture(scope="module")
def theirs():
    """Leave out of each module what it has from others, which is not looked for there."""
    found = names.describe()
    for module, values in found.items():
        if module in names.PACKAGES:
            continue
        for name in list(values):
            home = getattr(getattr(sys.modules[module], name), "__module__", module)
            if (str(home).startswith("bitsandbytes") and home != module) or name == "logger":
                del values[name]
    return found


@pytest.fixture(scope="module")
def ours():
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, names.__file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_names_are_there(theirs, ours):
    missing = {module: set(values) - set(ours[module]) for module, values in theirs.items()}
    assert {module: names for module, names in missing.items() if names} == LEFT_OUT


def test_names_left_out_are_documented():
    text = MIGRATION.read_text()
    assert [name for each in LEFT_OUT.values() for name in each if f"`{name}`" not in text] == []


def test_signatures(theirs, ours):
    """Ours takes each parameter in its place with its default; it may take more after them."""
    wrong, compared = [], 0
    for module, values in theirs.items():
        for name, signature in values.items():
            got = ours[module].get(name)
            if signature is None or got is None:
                continue
            compared += 1
            expected = [p for p in signature if (name, p[0]) not in OTHER_PARAMETERS]
            other = [p for p in got if (name, p[0]) not in OTHER_PARAMETERS]
            if other[: len(expected)] != expected:
                wrong.append((module, name, expected, other))
    assert wrong == []
    assert compared > 150


def test_operators():
    """Every operator of bitsandbytes is registered, with the same schema."""
    code = """
import json, torch, bnbx.compat.bitsandbytes
print(json.dumps({s.name + "." + s.overload_name: [(a.name, str(a.type), a.has_default_value())
    for a in s.arguments] for s in torch._C._jit_get_all_schemas()
    if s.name.startswith("bitsandbytes::")}))
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    ours = json.loads(done.stdout)
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("bitsandbytes::")]
    assert len(schemas) >= 18
    for schema in schemas:
        arguments = [[a.name, str(a.type), a.has_default_value()] for a in schema.arguments]
        assert ours[f"{schema.name}.{schema.overload_name}"] == arguments
