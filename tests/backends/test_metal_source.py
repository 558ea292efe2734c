"""The text of the kernels for Metal: one source, of which clang checks what a Mac would compile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bnbx.backends import metal, metal_optimizers
from bnbx.ops import OPTIMIZER_BLOCKSIZES, RULES

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
CLANG = shutil.which("clang++-19")
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("metal") / "bnbx.metal"
    subprocess.run([sys.executable, ROOT / "cmake" / "metal_source.py", out], check=True)  # noqa: S603
    return out.read_bytes().decode("ascii")  # what PyTorch hands to the compiler


def check(source, path):
    """Return what clang has to say of a text, with the language as tests/metal/language has it."""
    path.write_text(source)
    language = ("-std=c++14", "-x", "c++", "-D__METAL_VERSION__=310", "-I", "tests/metal/language")
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-sign-compare", "-Wno-unused")
    of_metal = ("-Wno-unknown-attributes", "-Wno-ignored-attributes", "-Wno-unused-parameter")
    call = (CLANG, "-fsyntax-only", *language, *warnings, *of_metal, path)
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603


def constant(source, name):
    return int(re.search(rf"^BNBX_CONSTANT \w+ {name} = (\d+);", source, re.MULTILINE)[1])


def test_headers_are_included_once(source):
    includes = [line for line in source.splitlines() if line.startswith("#include")]
    assert includes == ["#include <metal_stdlib>"]
    assert source.count("struct Codebook4 {") == 1
    assert source.count("struct AdEMAMix") == 1


def test_tables_and_formulas_stand_in_kernels_common():
    own = "".join(path.read_text() for path in (KERNELS / "metal").glob("*.[mh]*"))
    assert "0.6961928" not in own  # of nf4
    assert "0x9e3779b9" not in own  # of the random numbers
    assert "beta1" not in own  # of the rules
    assert "127" not in own  # of int8


def test_the_launches_have_the_numbers_of_the_kernels(source):
    assert constant(source, "kThreads") == metal.THREADS
    assert constant(source, "kLanes") == metal.LANES
    assert constant(source, "kRows") == metal._ROWS_AT_ONCE
    assert constant(source, "kSide") == metal._TILE
    assert constant(source, "kValues") == metal._COUNTED
    assert f"kPatterns = 1 << {metal._PATTERNS.bit_length() - 1}" in source
    options = re.findall(r"k(\w+)", re.search(r"enum Rounding (\{.*\})", source)[1])
    assert [name.lower() for name in options] == list(metal_optimizers.ROUNDINGS)
    blocksizes = {4: "kOptimizerBlocksize4", 8: "kOptimizerBlocksize"}
    assert {b: constant(source, name) for b, name in blocksizes.items()} == OPTIMIZER_BLOCKSIZES


def test_every_kernel_that_is_launched_is_there(source):
    python = "".join(Path(m.__file__).read_text() for m in (metal, metal_optimizers))
    wanted = set(re.findall(r'\.launch\(\s*"(\w+)"', python))
    for name in re.findall(r'\.launch_for\(\s*"(\w+)"', python):
        wanted |= {f"{name}_{dtype}" for dtype in DTYPES}
    for rule in RULES:
        wanted |= {f"{name}_{rule}_{bits}" for name in ("update", "measure") for bits in (32, 8, 4)}
    found = re.findall(r'^BNBX_INSTANTIATE\("(\w+)"', source, re.MULTILINE)
    assert sorted(found) == sorted(wanted)


@pytest.mark.skipif(CLANG is None, reason="needs clang++-19")
def test_the_language_is_kept_to(source, tmp_path):
    result = check(source, tmp_path / "bnbx.metal")
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(CLANG is None, reason="needs clang++-19")
@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("nearest_entry<256>(bounds, x)", "nearest_entry<256>(code, x)", "to address space '3'"),
        ("rule_from<Rule>(constants)", "rule_from<Rule>(qmap1)", "to address space '2'"),
        ("add_products(A + first * K", "add_products(sums + first * K", "'device float const *'"),
        ("to_float(bfloat16{from[i].bits})", "to_float(from[i])", "address space"),
        ("thread float* to = ", "device float* to = ", "type 'device float *'"),
        ("const float limit = max_unorm", "const double limit = max_unorm", "poisoned"),
    ],
)
def test_what_the_language_refuses_is_found(source, tmp_path, right, wrong, complaint):
    assert right in source
    result = check(source.replace(right, wrong), tmp_path / "bnbx.metal")
    assert result.returncode != 0
    assert complaint in result.stderr
