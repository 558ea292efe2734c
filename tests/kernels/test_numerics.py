"""Tables and formulas of the field stand in kernels/common; each backend includes them there."""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path

import pytest

from bnbx import codebooks

KERNELS = Path(__file__).parents[2] / "kernels"
COMMON = KERNELS / "common"
SUFFIXES = {".h", ".cpp", ".cu", ".metal"}
#: The folders whose kernels a backend compiles; hip, sycl and the emulator compile those of cuda.
COMPILED = {
    "avx": ("avx",),
    "cuda": ("cuda",),
    "hip": ("hip", "cuda"),
    "sycl": ("sycl", "cuda"),
    "simt": ("simt", "cuda"),
    "metal": ("metal",),
}
NUMERICS = ("codebooks.h", "int8.h", "optimizers.h", "quantiles.h", "rounding.h")
FLOAT = r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?[fFhH]?(?!\w)"


def sources(backend):
    return sorted(path for path in (KERNELS / backend).rglob("*") if path.suffix in SUFFIXES)


def code_of(text):
    """Return the text without comments and strings."""
    return re.sub(r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"", " ", text, flags=re.DOTALL)


def entries():
    """Return the entries of the tables, and half-way between them, that have no short fraction."""
    tables = [codebooks.get_4bit_type(name) for name in codebooks.QUANT_TYPES_4BIT]
    tables += [codebooks.create_optimizer_map_4bit(signed) for signed in (True, False)]
    found = set()
    for table in tables:
        ordered = table.double().sort().values
        middles = (ordered[1:] + ordered[:-1]) / 2
        found.update(abs(value) for value in [*ordered.tolist(), *middles.tolist()])
    return sorted(value for value in found if value * 256 % 1 != 0 and value * 100 % 5 > 1e-6)


ENTRIES = entries()
BITS = {struct.unpack("<I", struct.pack("<f", value))[0] & 0x7FFFFFFF for value in ENTRIES}
COMMON_TEXT = {path.name: code_of(path.read_text()) for path in sorted(COMMON.glob("*.h"))}
#: Types and constants that the common headers define, but for traits that others specialize.
NAMES = {
    name
    for text in COMMON_TEXT.values()
    for name in (
        *re.findall(r"^(?:template <[^>]*>\n)?struct (\w+)[^;<]*?{", text, re.MULTILINE),
        *re.findall(r"BNBX_CONSTANT \w+ (k\w+)", text),
    )
}
#: Numbers that have a name in kernels/common.
CONSTANTS = {
    127.0: "the largest int8 code",
    127.0**2: "the square of the largest int8 code",
    1e-36: "the smallest absmax of a row",
    1e-38: "the smallest absmax",
}
#: The constants of the random numbers.
MIXERS = set(re.findall(r"0x[0-9a-f]{8,16}", COMMON_TEXT["rounding.h"]))


#: What else betrays a formula, and what it is.
FORMULAS = {
    r"/ *12(?:\.0*)?f?\b": "is an entry of fp4",
    r"\bbeta[123]\b|\bsqrt_bias\w*|\bbias_correction\b": "is what a rule is made of",
}
DEFINITIONS = (
    r"\b(?:struct|class) (\w+)[^;(){}<>]*{",
    r"\b(?:constexpr|BNBX_CONSTANT|const|constant) \w+ (k\w+)",
)


def findings(text):
    """Return what in a source should be in kernels/common."""
    text = code_of(text)
    yield from floats(text)
    for literal in re.findall(r"0x[0-9a-fA-F]{8,16}", text):
        if int(literal, 16) & 0x7FFFFFFF in BITS and len(literal) == 10:
            yield f"{literal} is an entry of a table"
        if literal.lower() in MIXERS:
            yield f"{literal} mixes random bits"
    for pattern, what in FORMULAS.items():
        yield from (f"{found} {what}" for found in re.findall(pattern, text))
    for pattern in DEFINITIONS:
        yield from (
            f"{name} is defined again" for name in re.findall(pattern, text) if name in NAMES
        )


def floats(text):
    for literal in re.findall(FLOAT, text):
        value = float(literal.rstrip("fFhH"))
        if any(abs(value - entry) <= 2e-4 * entry for entry in ENTRIES):
            yield f"{literal} is in a table"
        if value in CONSTANTS:
            yield f"{literal} is {CONSTANTS[value]}"
    for values in re.findall(r"{([^{}]*)}", text):
        if len(re.findall(FLOAT, values)) >= 8:
            yield "a table of floats"


EVERY_SOURCE = [path for backend in COMPILED for path in sources(backend)]


@pytest.mark.parametrize("path", EVERY_SOURCE, ids=lambda path: str(path.relative_to(KERNELS)))
def test_no_table_or_formula_of_its_own(path):
    assert list(findings(path.read_text())) == []


PLANTED = [
    "const float kLevels[] = {-1.0f, -0.6961928f};",
    "if (x < -0.6106) return 1;",  # half-way between two entries of nf4
    "float third = 4.0f / 12;",
    "x = 5.2083e-3f;",
    f"constexpr uint32_t kEntry = 0x{max(BITS):08x}u;",
    "float t[] = {0.0f, 0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f};",
    "struct Codebook4 {\n  float values[16];\n};",
    "struct Adam : Rule {\n  float m;\n};",
    "BNBX_CONSTANT float kInt8Max = 1.0f;",
    "m = m * beta1 + g * (1.0f - beta1);",
    "step_size = lr / bias_correction(b, step);",
    "x = (x ^ x >> 16) * 0x7feb352du;",
    "codes = x / absmax * 127.0f;",
    "absmax = fmaxf(absmax, 1e-38f);",
]


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_one_is_found(text):
    assert list(findings(text))
    assert not list(findings(f"// {text}".replace("\n", "\n// ")))


def included(path, seen):
    """Return the sources that a source includes, and those that they include."""
    if path in seen or not path.exists():
        return seen
    seen.add(path)
    for name in re.findall(r'^#include [<"]([\w./]+)[>"]', path.read_text(), re.MULTILINE):
        for folder in (KERNELS, KERNELS / "include", path.parent):
            included(folder / name, seen)
    return seen


@pytest.mark.parametrize("backend", COMPILED)
def test_every_backend_includes_the_numerics(backend):
    seen = set()
    for path in itertools.chain.from_iterable(map(sources, COMPILED[backend])):
        included(path, seen)
    missing = {name for name in NUMERICS if COMMON / name not in seen}
    assert not missing
    for other in set(COMPILED[backend]) - {backend}:
        assert f"../{other}/sources.cmake" in (KERNELS / backend / "CMakeLists.txt").read_text()


def test_every_folder_of_kernels_is_looked_at():
    folders = {path.name for path in KERNELS.iterdir() if path.is_dir()}
    assert folders - {"common", "include"} == set(COMPILED)
    assert len(EVERY_SOURCE) > 100
    assert {"Codebook4", "Adam", "Lion", "kNF4", "kInt8Max", "RandomBits"} <= NAMES
