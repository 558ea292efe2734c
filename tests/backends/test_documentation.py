"""docs/backends.md: its table of operations is that of the sources, without a gap."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnbx.backends import KERNELS, cpu, cuda, metal, xpu
from bnbx.backends.native import NativeBackend
from bnbx.backends.native_grouped import NativeGroupedBackend
from bnbx.ops import CONTRACTS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "backends.md").read_text()
#: Where a backend says what it implements.
LISTS = {
    "cpu": "kernels/avx/dispatch.cpp",
    "cuda": "kernels/cuda/backend.cu",
    "hip": "kernels/cuda/backend.cu",
    "sycl": "kernels/sycl/backend.cpp",
    "metal": "src/bnbx/_ext/metal_host.pxi",
}
CLASSES = {
    "cpu": cpu.CpuBackend,
    "cuda": cuda.CudaBackend,
    "sycl": xpu.XpuBackend,
    "metal": metal.MetalBackend,
}


def table():
    """Return what stands in the table: backend -> operation -> word."""
    text = DOCUMENT.split("## Operations")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    head, _, *rows = (line.split(" | ") for line in lines)
    found = {name: {} for column in head[1:] for name in re.findall(r"\w+", column)}
    for operations, *cells in rows:
        for column, cell in zip(head[1:], cells, strict=True):
            for name in re.findall(r"\w+", column):
                for operation in re.findall(r"`([^`]+)`", operations):
                    assert operation not in found[name]
                    found[name][operation] = cell
    return found


TABLE = table()


def implemented(backend):
    """Return the operations of a backend, by its sources."""
    text = (ROOT / LISTS[backend]).read_text()
    assert "every_operation()" in text
    every = (ROOT / "kernels/common/operations.h").read_text()
    return set(re.findall(r'"([a-z_0-9.]+)"', every))


def test_every_backend_has_a_column_and_every_operation_a_row():
    assert set(TABLE) == {kernels.name for kernels in KERNELS} | {"others"}
    for column in TABLE.values():
        assert set(column) == set(CONTRACTS)
    assert set(TABLE["others"].values()) == {"reference"}


@pytest.mark.parametrize("backend", LISTS)
def test_what_a_backend_has_is_what_its_sources_have(backend):
    native = {name for name, cell in TABLE[backend].items() if cell != "reference"}
    assert native == implemented(backend)


def test_every_word_is_explained():
    words = {cell for column in TABLE.values() for cell in column.values()}
    explained = re.findall(r"^- \*(\w+)\*:", DOCUMENT, re.MULTILINE)
    assert words == set(explained)


def own(backend, method, base):
    return getattr(CLASSES[backend], method, None) is not getattr(base, method)


@pytest.mark.parametrize("backend", ["cpu", "cuda", "sycl"])
def test_products_that_torch_has_a_part_in_are_not_called_kernels(backend):
    operations = ("gemm_4bit", "gemm_4bit_transposed")
    mixed = own(backend, "_multiply_4bit", NativeBackend)
    assert {TABLE[backend][name] for name in operations} == {"both" if mixed else "kernel"}
    grouped = ("gemm_4bit_grouped", "gemm_4bit_grouped_transposed")
    mixed = own(backend, "_multiply_grouped", NativeGroupedBackend)
    assert {TABLE[backend][name] for name in grouped} == {"both" if mixed else "kernel"}


def test_the_numbers_are_those_of_the_source():
    rows = {str(dtype).removeprefix("torch."): count for dtype, count in cpu._MANY_ROWS.items()}
    assert rows["float16"] == rows["bfloat16"]
    words = f"from {rows['float32']} rows of float32 and {rows['float16']} of 16 bits"
    assert words in DOCUMENT.replace("\n  ", " ")


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.name)
def test_every_backend_is_described(kernels):
    rows = re.findall(
        rf"^\| `{kernels.name}` \| `{kernels.device_type}` \|", DOCUMENT, re.MULTILINE
    )
    assert len(rows) == 1
    assert kernels.name == "cpu" or f"COMPUTE_BACKEND={kernels.name}" in DOCUMENT
