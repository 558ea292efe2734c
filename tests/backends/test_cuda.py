"""How kernels for CUDA are called: on which device and on which stream; no GPU is needed."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from bnbx.backends.cuda import CudaBackend

STREAMS = {0: 100, 1: 101}


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    number = 0

    def get_device(self):
        return self.number


class Module:
    """Stands where the extension does, and remembers how it was called."""

    def __init__(self, current):
        self.current = current
        self.calls = []

    def read_tensors_by(self, _table, device):
        self.device = device

    def estimate_quantiles_workspace(self):
        return 5

    def estimate_quantiles(self, *call):
        self.calls.append((self.current[-1], call[-1]))

    def optimizer_update_32bit(self, *call):
        self.calls.append((self.current[-1], call[-1]))
        return -1


@pytest.fixture
def ext(monkeypatch):
    current = [0]

    @contextlib.contextmanager
    def device(number):
        current.append(number)
        yield
        current.pop()

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current[-1], raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", STREAMS.__getitem__, raising=False)
    monkeypatch.setattr(torch.cuda, "device", device)
    return Module(current)


def on_gpu(number):
    tensor = torch.zeros(3).as_subclass(OnGpu)
    tensor.number = number
    return tensor


@pytest.mark.parametrize("number", [0, 1])
def test_a_kernel_runs_on_the_device_and_the_stream_of_its_tensor(ext, number):
    call = CudaBackend(ext).kernel("estimate_quantiles")
    out = torch.zeros(2)
    assert call(out, on_gpu(number), 0.1, 2) is out
    assert ext.calls == [(number, STREAMS[number])]
    assert ext.current == [0]
    assert ext.device == 2  # kDLCUDA


@pytest.mark.parametrize("number", [0, 1])
def test_a_step_runs_where_its_parameters_are(ext, number):
    update = types.SimpleNamespace(
        p=[on_gpu(number)], optimizer_name="lion", live=None, unorm_vec=[], qmaps=()
    )
    CudaBackend(ext).kernel("optimizer_update_32bit")(update, "lion")
    assert ext.calls == [(number, STREAMS[number])]


def test_a_step_without_parameters_calls_nothing(ext):
    update = types.SimpleNamespace(p=[], optimizer_name="lion", live=None, unorm_vec=[])
    CudaBackend(ext).kernel("optimizer_update_32bit")(update, "lion")
    assert ext.calls == []


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_products_by_torch_are_not_cast_under_autocast(ext, biased, transposed, monkeypatch):
    monkeypatch.setattr("bnbx.backends.cuda.decodes_first", lambda *_: True)
    monkeypatch.setattr("bnbx.backends.cuda._capability", lambda _: (9, 0))
    backend, weight = CudaBackend(ext), torch.randn(24, 40)
    backend.dequantize_4bit = lambda decoded, *_: decoded.copy_(weight)
    A = torch.randn(80, 24 if transposed else 40)
    bias = torch.randn(24) if biased and not transposed else None
    product = backend.kernel("gemm_4bit_transposed" if transposed else "gemm_4bit")
    call = (A, weight, weight.shape, weight, 64, "nf4", *(() if transposed else (bias,)))
    expected = product(torch.empty(80, 40 if transposed else 24), *call)
    with torch.autocast("cpu", torch.bfloat16):
        found = product(torch.empty_like(expected), *call)
        cast = torch.mm(A, weight if transposed else weight.t())
    assert torch.equal(found, expected)
    assert cast.dtype == torch.bfloat16  # autocast was on


@pytest.mark.parametrize("name", ["mm", "addmm"])
def test_autocast_of_a_gpu_knows_no_products_into_a_given_output(name):
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"aten::{name}", "AutocastCUDA")
    assert not has_kernel(f"aten::{name}.out", "AutocastCUDA")
