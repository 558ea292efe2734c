"""Paged states: the same numbers from files of a directory, and what happens if those fail.

``test_paging_limits.py`` has the runs whose states exceed a limit of the system.
"""

from __future__ import annotations

import copy
import errno
import mmap
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

from bnbx.optim import (
    Adam,
    Adam8bit,
    AdamW,
    GlobalOptimManager,
    Lion8bit,
    PagedAdam8bit,
    PagedAdam32bit,
    PagedMemory,
    SGD8bit,
)

from .families import every_maker, parameters, set_gradients
from .test_optimizer import Calls

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="space is reserved on POSIX only")

SHAPES = [(100, 101), (5,), (9000,), (300, 70), ()]
PAGE = mmap.PAGESIZE


@pytest.fixture
def memory(tmp_path):
    return PagedMemory(tmp_path)


def twins(shapes=SHAPES):
    params = parameters(shapes)
    return params, [torch.nn.Parameter(p.detach().clone()) for p in params]


def step_both(first, second):
    """Step two optimizers with equal gradients."""
    pairs = [
        (p, q)
        for mine, others in zip(first.param_groups, second.param_groups, strict=True)
        for p, q in zip(mine["params"], others["params"], strict=True)
    ]
    set_gradients([p for p, _ in pairs])
    for p, q in pairs:
        q.grad = p.grad.clone()
    first.step()
    second.step()
    assert all(torch.equal(p, q) for p, q in pairs)


def contents(params):
    return [p.detach().clone() for p in params]


def assert_equal(params, others):
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def aligned(nbytes):
    return -(-nbytes // 64) * 64


@every_maker
@pytest.mark.parametrize("resident_bytes", [None, 3 * 30_000])
def test_paged_states_give_the_same_bits(cls, resident_bytes, tmp_path):
    memory = PagedMemory(tmp_path, resident_bytes=resident_bytes)
    params, others = twins()
    paged, plain = cls(params, paging=memory), cls(others)
    for _ in range(4):
        step_both(paged, plain)
    assert memory.reserved_bytes > 0


def test_a_bounded_update_sees_whole_parameters(tmp_path):
    params, others = twins()
    memory = PagedMemory(tmp_path, resident_bytes=1)
    paged, plain = Adam8bit(params, paging=memory, max_unorm=0.01), Adam8bit(others, max_unorm=0.01)
    for _ in range(3):
        step_both(paged, plain)


def test_what_is_reserved(tmp_path):
    """States of a page and more, in multiples of 64 bytes; the space goes with the optimizer."""
    memory = PagedMemory(tmp_path)
    params = parameters([(PAGE,), (PAGE - 64,), (257 * PAGE + 1,)])
    set_gradients(params)
    optimizer = Adam8bit(params, paging=memory, min_8bit_size=0)
    assert memory.reserved_bytes == 0
    optimizer.step()
    absmax = 4 * (257 * PAGE // 256 + 1)
    expected = 2 * (PAGE + aligned(257 * PAGE + 1) + aligned(absmax))
    assert memory.reserved_bytes == expected
    optimizer.step()
    assert memory.reserved_bytes == expected
    assert list(tmp_path.iterdir()) == []  # the file has no name
    descriptor = next(iter(optimizer._pages._files)).descriptor
    kept = optimizer.state[params[0]]["state1"]
    before = kept.clone()
    del optimizer
    assert memory.reserved_bytes == expected
    assert torch.equal(kept, before)
    del kept
    assert memory.reserved_bytes == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_states_that_are_forgotten_free_their_space(memory):
    params = parameters([(9000,)])
    optimizer = Adam8bit(params, paging=memory)
    for _ in range(2):
        set_gradients(params)
        optimizer.step()
        assert memory.reserved_bytes == 2 * aligned(9000)
        optimizer.state.clear()
    assert memory.reserved_bytes == 0


def test_without_a_directory_paged_states_are_in_memory():
    params, others = twins()
    paged, plain = PagedAdam8bit(params), Adam8bit(others)
    step_both(paged, plain)
    assert paged._paging is None
    assert paged.state[params[0]]["state1"].untyped_storage().resizable()


def test_an_optimizer_says_whether_it_is_paged(memory):
    params = parameters(SHAPES)
    paged = (PagedAdam8bit(params), Adam8bit(params, is_paged=True), Adam(params, paging=memory))
    assert all(optimizer.is_paged is True for optimizer in paged)
    assert pickle.loads(pickle.dumps(PagedAdam8bit(params))).is_paged is True
    assert Adam8bit(params).is_paged is False


def test_groups_and_parameters_may_stay_in_memory(memory):
    params = parameters([(9000,), (9000,), (9000,)])
    set_gradients(params)
    groups = [{"params": params[:1], "is_paged": False}, {"params": params[1:]}]
    GlobalOptimManager.get_instance().override_config(params[1], "is_paged", value=False)
    optimizer = SGD8bit(groups, lr=0.1, momentum=0.9, paging=memory)
    assert optimizer.args.is_paged
    optimizer.step()
    assert memory.reserved_bytes == aligned(9000)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    assert memory.reserved_bytes == aligned(9000)


def test_groups_added_later(memory):
    params, others = twins()
    paged, plain = Adam8bit(params[:2], paging=memory), Adam8bit(others[:2])
    step_both(paged, plain)
    before = memory.reserved_bytes
    paged.add_param_group({"params": params[2:], "lr": 0.1, "optim_bits": 32})
    plain.add_param_group({"params": others[2:], "lr": 0.1, "optim_bits": 32})
    for _ in range(2):
        step_both(paged, plain)
    assert memory.reserved_bytes == before + 2 * (aligned(36_000) + aligned(84_000))


def test_a_turn_has_no_more_states_than_a_third_of_the_resident_bytes(tmp_path):
    params = parameters([(2 * PAGE,)] * 7 + [(8 * PAGE,), (5,)])
    set_gradients(params)
    memory = PagedMemory(tmp_path, resident_bytes=3 * 8 * PAGE)
    optimizer = Lion8bit(params, paging=memory, min_8bit_size=0)
    with Calls() as calls:
        optimizer.step()
    assert [count for _, count in calls.sizes] == [4, 3, 2]
    optimizer = Lion8bit(params, paging=PagedMemory(tmp_path), min_8bit_size=0)
    with Calls() as calls:
        optimizer.step()
    assert [count for _, count in calls.sizes] == [9]


# Saving, loading, copying --------------------------------------------------------------------


@every_maker
def test_checkpoints_go_between_paged_and_plain(cls, memory, tmp_path):
    params, others = twins()
    paged, plain = cls(params, paging=memory), cls(others)
    step_both(paged, plain)
    torch.save(paged.state_dict(), tmp_path / "paged.pt")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    reserved = memory.reserved_bytes
    fresh = PagedMemory(tmp_path)
    paged, plain = cls(params, paging=fresh), cls(others)
    paged.load_state_dict(torch.load(tmp_path / "plain.pt"))
    plain.load_state_dict(torch.load(tmp_path / "paged.pt"))
    for _ in range(2):
        assert fresh.reserved_bytes == reserved > 0
        step_both(paged, plain)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_pages_its_own_states(way, memory):
    params = parameters(SHAPES)
    optimizer = PagedAdam8bit(params, paging=memory)
    set_gradients(params)
    optimizer.step()
    before = memory.reserved_bytes
    copied = way(optimizer)
    step_both(optimizer, copied)
    assert copied._paging.directory == memory.directory
    assert copied._paging.reserved_bytes == (2 * before if copied._paging is memory else before)
    assert memory.reserved_bytes == (2 * before if copied._paging is memory else before)
    step_both(optimizer, copied)


def test_a_load_that_fails_changes_nothing(memory):
    params, others = twins()
    paged, plain = Adam8bit(params, paging=memory), Adam8bit(others)
    step_both(paged, plain)
    before = memory.reserved_bytes
    memory.budget_bytes = before
    with pytest.raises(ValueError, match="^budget_bytes: expected at least"):
        paged.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert memory.reserved_bytes == before
    step_both(paged, plain)


# What can go wrong ---------------------------------------------------------------------------


def test_budget(tmp_path):
    memory = PagedMemory(tmp_path, budget_bytes=40_000)
    params, more = parameters([(9000,)]), parameters([(9000,), (9000,)])
    first, second = Adam8bit(params, paging=memory), Adam8bit(more, paging=memory)
    set_gradients(params + more)
    first.step()
    before = contents(params + more)
    message = (
        r"^budget_bytes: expected at least 45,120 for the states in .*, 36,096 of which are "
        "reserved, got 40,000. Raise it"
    )
    with pytest.raises(ValueError, match=message):
        second.step()
    assert_equal(params + more, before)
    del first
    second.step()  # there is room now
    assert memory.reserved_bytes == 4 * aligned(9000)


def test_two_optimizers_in_one_directory(memory, tmp_path):
    first, second = twins()
    third, fourth = twins()
    paged, plain = Adam8bit(first, paging=memory), Adam8bit(second)
    neighbour, alone = AdamW(third, paging=PagedMemory(tmp_path)), AdamW(fourth)
    for _ in range(3):
        step_both(paged, plain)
        step_both(neighbour, alone)
    del paged
    step_both(neighbour, alone)


def full_disk(after):
    """Return a ``posix_fallocate`` that has no space after some calls."""
    real, calls = os.posix_fallocate, []

    def reserve(*args):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    return reserve


@pytest.mark.skipif(sys.platform == "darwin", reason="has no posix_fallocate")
@pytest.mark.parametrize("after", [0, 3])
def test_full_disk(after, memory, monkeypatch):
    """The parameters stay those of the last finished step, and with space the next one is made."""
    params, others = twins([(9000,), (9000,), (9000,)])
    paged, plain = Adam8bit(params[:1], paging=memory), Adam8bit(others[:1])
    step_both(paged, plain)
    paged.add_param_group({"params": params[1:]})
    set_gradients(params)
    before = contents(params)
    monkeypatch.setattr(os, "posix_fallocate", full_disk(after))
    message = (
        rf"^paging: expected 9,024 bytes more for states in {memory.directory}, "
        r"got [\d,]+ bytes free \(No space left on device\)"
    )
    with pytest.raises(ValueError, match=message):
        paged.step()
    assert_equal(params, before)
    assert memory.reserved_bytes == 2 * 9024 * (1 + after // 2)  # no half of a state
    monkeypatch.undo()
    plain.add_param_group({"params": others[1:]})
    step_both(paged, plain)


def test_states_larger_than_the_disk(memory, tmp_path):
    """The disk is asked, and not filled to find out."""
    free = shutil.disk_usage(tmp_path).free
    p = torch.nn.Parameter(torch.ones(1).expand(free))
    p.grad = torch.ones(1).expand(free)
    optimizer = PagedAdam32bit([p], paging=memory)
    with pytest.raises(ValueError, match=r"^paging: expected .* bytes more for states .*No space"):
        optimizer.step()
    assert p[0] == 1.0
    assert memory.reserved_bytes == 0
    assert shutil.disk_usage(tmp_path).free > free // 2


def test_a_directory_that_is_deleted_takes_no_states_with_it(tmp_path):
    directory = tmp_path / "states"
    directory.mkdir()
    memory = PagedMemory(directory)
    params, others = twins()
    paged, plain = Adam8bit(params, paging=memory), Adam8bit(others)
    step_both(paged, plain)
    shutil.rmtree(directory)
    step_both(paged, plain)
    late = Adam8bit(params, paging=memory)
    before = contents(params)
    with pytest.raises(ValueError, match=r"^paging: expected room .*states, got No such file"):
        late.step()
    assert_equal(params, before)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the file has no name")
@pytest.mark.parametrize("length", [0, PAGE, (1 << 30) - 1])
def test_a_shortened_file(length, memory):
    params, others = twins()
    paged, plain = Adam8bit(params, paging=memory), Adam8bit(others)
    step_both(paged, plain)
    saved = copy.deepcopy(paged.state_dict())
    set_gradients(params)
    before = contents(params)
    os.truncate(f"/proc/self/fd/{next(iter(paged._pages._files)).descriptor}", length)
    message = rf"^paging: expected a file of .* in {memory.directory}.*, got {length:,} bytes"
    for use in (paged.step, paged.state_dict, lambda: pickle.dumps(paged)):
        with pytest.raises(ValueError, match=message):
            use()
    assert_equal(params, before)
    paged.load_state_dict(saved)
    step_both(paged, plain)


def test_a_file_that_its_server_has_lost(memory, monkeypatch):
    params = parameters(SHAPES)
    set_gradients(params)
    optimizer = Adam8bit(params, paging=memory)
    optimizer.step()
    before = contents(params)
    lost, fstat = next(iter(optimizer._pages._files)).descriptor, os.fstat

    def stale(descriptor):
        if descriptor == lost:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", stale)
    with pytest.raises(ValueError, match="^paging: expected a file .*, got Stale file handle"):
        optimizer.step()
    assert_equal(params, before)


def test_a_forked_process_cannot_update_the_states_of_its_parent(memory, monkeypatch):
    params = parameters(SHAPES)
    set_gradients(params)
    optimizer = Adam8bit(params, paging=memory)
    optimizer.step()
    saved, before = copy.deepcopy(optimizer.state_dict()), contents(params)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ValueError, match="^paging: expected a step in the process that made the"):
        optimizer.step()
    assert_equal(params, before)
    optimizer.load_state_dict(saved)  # now it has states of its own
    optimizer.step()
    assert not torch.equal(params[0], before[0])


# Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing",), "^directory: expected an existing directory, got none: .*missing"),
        (("file",), "^directory: expected an existing directory, got none: .*file"),
        ((".", 0), "^budget_bytes: expected a positive number of bytes, or None .*, got 0"),
        ((".", 1e9), "^budget_bytes: "),
        ((".", True), "^budget_bytes: "),
        ((".", None, -1), "^resident_bytes: expected a positive number"),
    ],
)
def test_arguments_that_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ValueError, match=message):
        PagedMemory(*arguments)


def test_windows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="^directory: expected a POSIX system"):
        PagedMemory(tmp_path)


def test_paging_belongs_to_the_optimizer(memory):
    p, q = parameters([(300,), (300,)])
    with pytest.raises(ValueError, match="^paging: expected a PagedMemory, or None, got 'states'"):
        Adam([p], paging="states")
    message = r"paging: expected nothing, because it is an argument of the optimizer only"
    with pytest.raises(ValueError, match=rf"^param_groups\[0\].{message}"):
        Adam([{"params": [p], "paging": memory}])
    with pytest.raises(ValueError, match=f"^{message}"):
        GlobalOptimManager.get_instance().override_config(q, "paging", memory)
    assert not Adam([p], paging=None).args.is_paged


def test_the_environment_gives_a_directory_to_paged_optimizers(tmp_path, monkeypatch):
    monkeypatch.setenv("BNBX_PAGED_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("BNBX_PAGED_BUDGET_BYTES", "100000")
    params = parameters([(9000,)])
    set_gradients(params)
    first, second = PagedAdam8bit(params), PagedAdam32bit(params)
    for optimizer in (first, second):
        optimizer.step()
    assert first._paging is second._paging  # one budget
    assert first._paging.directory == tmp_path
    assert first._paging.reserved_bytes == 2 * (aligned(9000) + aligned(36_000))
    third = PagedAdam32bit(params)
    with pytest.raises(ValueError, match="^budget_bytes: "):
        third.step()
    assert Adam8bit(params)._paging is None
    monkeypatch.setenv("BNBX_PAGED_BUDGET_BYTES", "many")
    with pytest.raises(ValueError, match="^BNBX_PAGED_BUDGET_BYTES: expected a number of bytes"):
        PagedAdam8bit(params)
    monkeypatch.delenv("BNBX_PAGED_DIRECTORY")
    monkeypatch.setenv("BNBX_PAGED_BUDGET_BYTES", "100000")
    assert PagedAdam8bit(params)._paging.directory is None  # as states of a GPU have it
