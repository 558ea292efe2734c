"""The backend for Metal without a GPU: what it hands to PyTorch, and when."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from bnbx.backends.metal import MetalBackend
from bnbx.backends.metal_launches import compiled


class Recorded:
    """Stands for a library of kernels, and keeps what it is called with."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments, **how: self.calls.append((name, arguments, how))


@pytest.fixture
def library():
    return Recorded()


@pytest.fixture
def backend(library):
    return MetalBackend(SimpleNamespace(), lambda _: library)


def test_the_text_beside_the_module_is_compiled(monkeypatch, tmp_path):
    (tmp_path / "bnbx.metal").write_text("kernel void nothing() {}")
    monkeypatch.setattr(torch.mps, "compile_shader", lambda source: f"compiled {source}")
    ext = SimpleNamespace(__file__=str(tmp_path / "_metal.abi3.so"))
    assert compiled(ext) == "compiled kernel void nothing() {}"


def test_nothing_is_compiled_before_the_first_launch():
    made = []
    backend = MetalBackend(SimpleNamespace(), lambda ext: made.append(ext) or Recorded())
    A, scales = torch.empty(0, dtype=torch.uint8), torch.empty(0)
    backend.dequantize_blockwise(torch.empty(0), A, scales, torch.empty(256), 64, torch.float32)
    assert not made
    A, scales = torch.empty(3, dtype=torch.uint8), torch.empty(1)
    for _ in range(2):
        backend.dequantize_blockwise(torch.empty(3), A, scales, torch.empty(256), 64, torch.float32)
    assert made == [backend.ext]


@pytest.mark.parametrize("numel", [1, 511, 512, 513, 2**20 + 2])
def test_whole_groups_are_launched(backend, library, numel):
    packed, scales = torch.empty((numel + 1) // 2, dtype=torch.uint8), torch.empty(-(-numel // 64))
    out = torch.empty(numel, dtype=torch.bfloat16)
    backend.dequantize_4bit(out, packed, scales, 64, "fp4", (numel,), torch.bfloat16)
    ((name, arguments, how),) = library.calls
    assert name == "dequantize_4bit_bfloat16"
    assert arguments[0].data_ptr() == packed.data_ptr()
    assert arguments[1] is scales
    assert arguments[5] is out
    assert arguments[2:5] == (numel, 6, 1)
    assert how == {"threads": math.ceil(numel / 512) * 256, "group_size": 256}


@pytest.mark.parametrize(("rows", "launched"), [(8, "gemm_4bit"), (9, "dequantize_4bit")])
def test_many_rows_are_multiplied_by_torch(backend, library, rows, launched):
    A, B = torch.ones(rows, 64), torch.zeros(16 * 32, 1, dtype=torch.uint8)
    backend.gemm_4bit(torch.empty(rows, 16), A, B, [16, 64], torch.ones(16), 64, "nf4")
    assert [name for name, _, _ in library.calls] == [f"{launched}_float32"]


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_any_number_of_factors_can_be_tried(backend, library, count):
    factors = [1.0] * count  # more than fit into a launch as numbers
    backend.scale_search_4bit(torch.empty(1), torch.ones(64), None, factors, 1, 64, "nf4")
    ((_, arguments, _),) = library.calls
    trials, given = arguments[4:6]
    assert trials.tolist() == factors
    assert given == count
