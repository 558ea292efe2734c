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
