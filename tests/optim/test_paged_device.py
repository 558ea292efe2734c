"""Paged states of a GPU, on the CPU: where they lie, in what order they move, what is refused.

The memory is that of a class in Python and, where it is built, that of the emulator for GPU
kernels. ``test_paged_cuda.py`` has what needs a GPU.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
import types
import warnings
import weakref

import pytest
import torch
from torch import Tensor

from bnbx.backends.paged_memory import PAGED_DEVICES
from bnbx.optim import Adam8bit, GlobalOptimManager, Lion8bit, PagedAdam8bit, PagedMemory
from bnbx.optim.paged_device import SMALLEST_BYTES

from .families import every_maker, set_gradients
from .paged_devices import LoggedDevices, Module, Updates
from .test_paging import assert_equal, contents, parameters, step_both, twins

#: States of 8 bits: two that are paged, one that is not, and an absmax of 32 bits that is.
SHAPES = [(SMALLEST_BYTES,), (5,), (2, SMALLEST_BYTES), (300, 70)]
BLOCK = SMALLEST_BYTES

as_gpu = pytest.mark.usefixtures("gpu")


def emulator():
    ext = pytest.importorskip("bnbx._ext._simt", reason="the emulator is not built")
    ext.read_tensors_by(Tensor.__dlpack_c_exchange_api__, 1)
    return ext


@pytest.fixture(params=["python", "emulator"])
def ext(request):
    return Module() if request.param == "python" else emulator()


@pytest.fixture
def gpu(ext, monkeypatch):
    """The CPU as a GPU."""
    devices = LoggedDevices(ext)
    monkeypatch.setitem(PAGED_DEVICES, "cpu", devices)
    return devices


def paged_bytes(optimizer):
    tensors = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return sum(t.nbytes for t in tensors if t.nbytes >= SMALLEST_BYTES)


# The same numbers, and the space ------------------------------------------------------------


@as_gpu
@every_maker
@pytest.mark.parametrize("resident_bytes", [None, 1])
def test_paged_states_give_the_same_bits(cls, resident_bytes):
    memory = PagedMemory(resident_bytes=resident_bytes)
    params, others = twins(SHAPES)
    paged, plain = cls(params, paging=memory), cls(others)
    for _ in range(3):
        step_both(paged, plain)
    assert memory.reserved_bytes == paged_bytes(paged) > 0
    del paged
    assert memory.reserved_bytes == 0


def test_the_paged_classes_need_no_argument(gpu):
    params, others = twins(SHAPES)
    paged, plain = PagedAdam8bit(params), Adam8bit(others)
    for _ in range(2):
        step_both(paged, plain)
    assert {work.what for work in gpu.log} == {"in"}  # nothing is sent back


@as_gpu
def test_a_block_lives_as_long_as_a_tensor_in_it():
    memory = PagedMemory()
    params = parameters([(BLOCK,)])
    set_gradients(params)
    optimizer = Lion8bit(params, paging=memory)
    optimizer.step()
    kept = optimizer.state[params[0]]["state1"][5:]
    before = kept.clone()
    del optimizer
    assert memory.reserved_bytes == BLOCK
    assert torch.equal(kept, before)
    del kept
    assert memory.reserved_bytes == 0


def test_a_capsule_that_nobody_takes_frees_its_block(ext):
    block = ext.PagedBlock(BLOCK, 0, True)
    gone = []
    capsule = block.capsule()
    weakref.finalize(block, gone.append, True)
    del block
    assert not gone
    del capsule
    assert gone


@as_gpu
def test_groups_and_parameters_may_stay_on_the_device():
    memory = PagedMemory()
    params = parameters([(BLOCK,), (BLOCK,), (BLOCK,)])
    set_gradients(params)
    groups = [{"params": params[:1], "is_paged": False}, {"params": params[1:]}]
    GlobalOptimManager.get_instance().override_config(params[1], "is_paged", value=False)
    optimizer = Lion8bit(groups, paging=memory)
    for _ in range(2):
        optimizer.step()
        assert memory.reserved_bytes == BLOCK
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


# The order in which they move ---------------------------------------------------------------


def bounded(gpu, count, resident_bytes, steps=2):
    """Return the entries of the log that are updates, and the optimizer."""
    params = parameters([(BLOCK,)] * count)
    optimizer = Lion8bit(params, paging=PagedMemory(resident_bytes=resident_bytes))
    with Updates(gpu):
        for _ in range(steps):
            set_gradients(params)
            optimizer.step()
    return [n for n, work in enumerate(gpu.log) if work.what == "update"], optimizer


def moves(gpu, what, address):
    return [n for n, w in enumerate(gpu.log) if w.what == what and address in w.addresses]


@pytest.mark.parametrize("resident_bytes", [None, 4 * BLOCK])
def test_a_kernel_waits_for_its_pages(resident_bytes, gpu):
    updates, optimizer = bounded(gpu, 7, resident_bytes)
    addresses = {s["state1"].data_ptr() for s in optimizer.state.values()}
    assert addresses <= set().union(*(gpu.log[n].addresses for n in updates))
    for number in updates:
        work = gpu.log[number]
        for address in work.addresses & addresses:
            came = [n for n in moves(gpu, "in", address) if n < number]
            assert max(came) in work.before
            went = [n for n in moves(gpu, "out", address) if n < max(came)]
            assert set(went) <= gpu.log[max(came)].before


def test_pages_go_back_behind_their_kernels_and_make_room(gpu):
    """Two turns are on the device at a time: one being updated, one being fetched."""
    updates, _ = bounded(gpu, 7, 4 * BLOCK)
    assert len(updates) == 2 * 4
    outs = [n for n, w in enumerate(gpu.log) if w.what == "out"][7:]  # those of new states first
    ins = [n for n, w in enumerate(gpu.log) if w.what == "in"][7:]
    assert len(outs) == len(ins) == len(updates)
    for update, out in zip(updates, outs, strict=True):
        assert gpu.log[out].addresses <= gpu.log[update].addresses
        assert update in gpu.log[out].before
    for out, fetched in zip(outs, ins[2:], strict=False):
        assert out in gpu.log[fetched].before
    # Within a step the next turn does not wait for the kernels of this one, nor they for it.
    for update, (_, following) in zip(updates, itertools.pairwise(ins[:4]), strict=False):
        assert following not in gpu.log[update].before
        assert update not in gpu.log[following].before


def test_turns_have_half_of_the_resident_bytes(gpu):
    params = parameters([(2 * BLOCK,)] * 7 + [(8 * BLOCK,), (5,)])
    set_gradients(params)
    optimizer = Lion8bit(params, paging=PagedMemory(resident_bytes=2 * 8 * BLOCK))
    optimizer.step()
    gpu.log.clear()
    optimizer.step()
    assert [len(work.addresses) for work in gpu.log if work.what == "in"] == [4, 3, 1]


def test_new_states_do_not_stay_on_a_bounded_device(gpu):
    params = parameters([(BLOCK,)] * 3)
    set_gradients(params)
    optimizer = Lion8bit(params, paging=PagedMemory(resident_bytes=BLOCK))
    optimizer._batches()
    assert [work.what for work in gpu.log] == ["in", "out"] * 3


# Memory that cannot move --------------------------------------------------------------------


@pytest.mark.parametrize("resident_bytes", [None, 1])
def test_without_managed_memory_it_is_pinned(resident_bytes, monkeypatch):
    gpu = LoggedDevices(Module(managed=False))
    monkeypatch.setitem(PAGED_DEVICES, "cpu", gpu)
    memory = PagedMemory(resident_bytes=resident_bytes)
    params, others = twins(SHAPES)
    paged, plain = Adam8bit(params, paging=memory), Adam8bit(others)
    with pytest.warns(RuntimeWarning, match="^bnbx keeps .* cpu in pinned main memory") as said:
        step_both(paged, plain)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_both(paged, plain)
        late = PagedAdam8bit(params)
        late.step()  # once a process is enough
    assert gpu.log == []
    assert memory.reserved_bytes == paged_bytes(paged)


def test_the_emulator_refuses_to_move_what_is_not_managed():
    ext = emulator()
    block, pinned = ext.PagedBlock(BLOCK, 0, True), ext.PagedBlock(BLOCK, 0, False)
    ext.prefetch(block.address, BLOCK, True, 0)
    ext.prefetch(block.address + 5, BLOCK - 5, False, 0)
    for address, nbytes in ((block.address, BLOCK + 1), (pinned.address, 1), (0, 1)):
        with pytest.raises(RuntimeError, match="^prefetch: expected a part of a managed block"):
            ext.prefetch(address, nbytes, True, 0)
    address = block.address
    del block
    with pytest.raises(RuntimeError, match="^prefetch: "):
        ext.prefetch(address, 1, True, 0)


# Saving, loading, copying -------------------------------------------------------------------


@as_gpu
@every_maker
def test_checkpoints_go_between_paged_and_plain(cls, tmp_path):
    params, others = twins(SHAPES)
    paged, plain = cls(params, paging=PagedMemory()), cls(others)
    step_both(paged, plain)
    torch.save(paged.state_dict(), tmp_path / "paged.pt")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    sizes = [(tmp_path / name).stat().st_size for name in ("paged.pt", "plain.pt")]
    assert abs(sizes[0] - sizes[1]) < 1000  # blocks are saved, and nothing around them
    fresh = PagedMemory()
    paged, plain = cls(params, paging=fresh), cls(others)
    paged.load_state_dict(torch.load(tmp_path / "plain.pt"))
    plain.load_state_dict(torch.load(tmp_path / "paged.pt"))
    for _ in range(2):
        assert fresh.reserved_bytes == paged_bytes(paged)
        step_both(paged, plain)


@as_gpu
@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_pages_its_own_states(way):
    params = parameters(SHAPES)
    set_gradients(params)
    optimizer = PagedAdam8bit(params, paging=PagedMemory())
    optimizer.step()
    copied = way(optimizer)
    step_both(optimizer, copied)
    pages = copied._pages._devices[torch.device("cpu")]
    large = copied.state[copied.param_groups[0]["params"][0]]["state1"]
    assert pages.has(large)
    assert not optimizer._pages._devices[torch.device("cpu")].has(large)
    step_both(optimizer, copied)


# What is refused ----------------------------------------------------------------------------


@as_gpu
def test_budget():
    memory = PagedMemory(budget_bytes=3 * BLOCK)
    params = parameters([(BLOCK,)] * 2)
    set_gradients(params)
    before = contents(params)
    optimizer = Adam8bit(params, paging=memory)
    message = rf"^budget_bytes: expected at least {4 * BLOCK:,} for the states in main memory, "
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert_equal(params, before)
    memory.budget_bytes = 4 * BLOCK
    optimizer.step()
    assert memory.reserved_bytes == 4 * BLOCK


def test_no_memory_left(gpu, monkeypatch):
    params = parameters([(BLOCK,)])
    set_gradients(params)
    before = contents(params)

    def none_left(*_):
        raise MemoryError

    failing = types.SimpleNamespace(PagedBlock=none_left, has_managed_memory=lambda: True)
    monkeypatch.setattr(gpu, "_ext", failing)
    with pytest.raises(ValueError, match=rf"^paging: expected {BLOCK:,} bytes more of main memory"):
        PagedAdam8bit(params).step()
    assert_equal(params, before)


def test_memory_that_the_system_does_not_have():
    with pytest.raises(MemoryError):
        emulator().PagedBlock(1 << 60, 0, True)


@as_gpu
def test_a_directory_is_for_a_cpu(tmp_path):
    params, others = twins(SHAPES)
    set_gradients(params)
    optimizer = Adam8bit(params, paging=PagedMemory(tmp_path))
    message = "^paging: expected a PagedMemory without a directory for parameters on cpu, got Paged"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    plain = Adam8bit(others)
    set_gradients(others)
    plain.step()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(plain.state_dict())


def test_a_cpu_needs_a_directory():
    params, others = twins(SHAPES)
    set_gradients(params + others)
    optimizer = Adam8bit(params, paging=PagedMemory(resident_bytes=1))
    message = "^paging: expected a PagedMemory with a directory for parameters on a CPU, got Paged"
    with pytest.raises(ValueError, match=message):
        optimizer.step()


def test_a_graph_moves_nothing(gpu):
    params = parameters([(BLOCK,)] * 2)
    set_gradients(params)
    free = PagedAdam8bit(params)
    tight = PagedAdam8bit(params, paging=PagedMemory(resident_bytes=BLOCK))
    for optimizer in (free, tight):
        optimizer.step()
    gpu.log.clear()
    gpu.capturing = True
    free.step()
    Adam8bit(params).step()  # whose states are not paged
    assert gpu.log == []
    with pytest.raises(ValueError, match="^resident_bytes: expected None for a step in a graph"):
        tight.step()


def test_the_loader_registers_the_module_of_cuda():
    backends = importlib.import_module("bnbx.backends")
    loaded = any(b.device_type == "cuda" and b.operations for b in backends.BACKENDS)
    assert ("cuda" in PAGED_DEVICES) == loaded
