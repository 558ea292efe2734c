"""Paged states on a GPU: the same bits, whatever moves when. Nothing here runs without one."""

from __future__ import annotations

import copy

import pytest
import torch

from bnbx.backends.paged_memory import PAGED_DEVICES
from bnbx.optim import Adam, AdamW8bit, Lion8bit, PagedAdamW8bit, PagedMemory

from .families import every_maker, set_gradients
from .test_paging import step_both

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available() or "cuda" not in PAGED_DEVICES,
        reason="needs an NVIDIA GPU and the kernels for it",
    ),
    pytest.mark.filterwarnings("ignore:bnbx keeps paged optimizer states"),
]

SHAPES = [(1000, 1001), (5,), (300, 700), (1 << 20,)]


def twins(shapes=SHAPES):
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    return params, [torch.nn.Parameter(p.detach().clone()) for p in params]


@pytest.fixture(params=["as_probed", "pinned"])
def memory_kind(request, monkeypatch):
    if request.param == "pinned":
        monkeypatch.setattr(PAGED_DEVICES["cuda"], "is_managed", lambda _: False)


in_both_kinds = pytest.mark.usefixtures("memory_kind")


@in_both_kinds
@every_maker
@pytest.mark.parametrize("resident_bytes", [None, 1 << 20])
def test_paged_states_give_the_same_bits(cls, resident_bytes):
    memory = PagedMemory(resident_bytes=resident_bytes)
    params, others = twins()
    paged, plain = cls(params, paging=memory), cls(others)
    for _ in range(4):
        step_both(paged, plain)
    assert memory.reserved_bytes > 0
    del paged
    assert memory.reserved_bytes == 0


@in_both_kinds
def test_checkpoints_go_between_paged_and_plain(tmp_path):
    params, others = twins()
    paged, plain = PagedAdamW8bit(params), AdamW8bit(others)
    step_both(paged, plain)
    torch.save(paged.state_dict(), tmp_path / "paged.pt")
    saved = copy.deepcopy(plain.state_dict())
    paged, plain = PagedAdamW8bit(params), AdamW8bit(others)
    paged.load_state_dict(saved)
    plain.load_state_dict(torch.load(tmp_path / "paged.pt", map_location="cpu"))
    for _ in range(2):
        step_both(paged, plain)


def test_a_step_is_queued_without_waiting():
    """torch's own calls that wait are errors; those of the module are none that do."""
    params, _ = twins()
    optimizer = Lion8bit(params, paging=PagedMemory(resident_bytes=1 << 20))
    set_gradients(params)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_step():
    params, others = twins()
    paged = Adam(params, lr=1e-2, capturable=True, is_paged=True)
    plain = Adam(others, lr=1e-2, capturable=True)
    for p, q in zip(params, others, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        paged.step()
    torch.cuda.current_stream().wait_stream(side)
    plain.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        paged.step()
    for _ in range(3):
        graph.replay()
        plain.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_paged_bytes_are_not_those_of_the_allocator():
    torch.cuda.synchronize()
    params = [torch.nn.Parameter(torch.zeros(1 << 22, device="cuda"))]
    set_gradients(params)
    before = torch.cuda.memory_allocated()
    optimizer = Lion8bit(params, paging=(memory := PagedMemory()))
    optimizer.step()
    assert memory.reserved_bytes == 1 << 22
    assert torch.cuda.memory_allocated() - before < 1 << 20
