"""A GPU for the tests of paged states on machines without one: the CPU, with streams that it logs.

What is queued is done at once. The log says what each piece of work was made to wait for, which is
what would keep the order on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import weakref
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bnbx.backends.paged_memory import PagedDevices


class Block(mmap.mmap):
    """Stands where the binding's class does."""

    live: ClassVar = weakref.WeakValueDictionary()

    def __new__(cls, nbytes, _device, managed):
        self = super().__new__(cls, -1, nbytes)
        self.write(b"\xff" * nbytes)  # undefined is what the contents are
        self.used, self.managed = nbytes, managed
        self.address = torch.frombuffer(self, dtype=torch.uint8).data_ptr()
        cls.live[self.address] = self
        return self

    def capsule(self):
        return torch.frombuffer(self, dtype=torch.uint8).__dlpack__()


class Module:
    """Stands where a compiled module does."""

    PagedBlock = Block

    def __init__(self, managed=True):
        self.managed = managed

    def has_managed_memory(self):
        return self.managed

    def prefetch(self, address, nbytes, _to_device, _stream):
        assert nbytes <= Block.live[address].used
        assert Block.live[address].managed


@dataclasses.dataclass
class Work:
    """One entry of the log: what was queued where, and all that is done before it begins."""

    what: str  # "in", "out" or "update"
    addresses: set[int]  # of the blocks that it moves or may touch
    before: frozenset[int]  # numbers of entries


class Stream:
    def __init__(self, log, handle):
        self.log, self.cuda_stream, self.done = log, handle, frozenset()

    def add(self, what, addresses):
        self.log.append(Work(what, set(addresses), self.done))
        self.done |= {len(self.log) - 1}

    def record_event(self):
        return self.done

    def wait_event(self, event):
        self.done |= event


class LoggedDevices(PagedDevices):
    """The CPU as a GPU with a stream of kernels and one beside it."""

    def __init__(self, ext):
        super().__init__(ext)
        self.log = []
        self.kernels = Stream(self.log, 1)
        self.streams = 1
        self.capturing = False

    def guard(self, _device):
        return contextlib.nullcontext()

    def new_stream(self, _device):
        self.streams += 1
        return Stream(self.log, self.streams)

    def current_stream(self, _device):
        return self.kernels

    def is_capturing(self):
        return self.capturing

    def move(self, blocks, device, stream, *, to_device):
        super().move(blocks, device, stream, to_device=to_device)
        stream.add("in" if to_device else "out", [block.address for block in blocks])


class Updates(TorchDispatchMode):
    """Logs the optimizer operations as kernels on the current stream."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "bnbx":
            tensors = torch.utils._pytree.tree_leaves((args, kwargs))
            touched = {t.data_ptr() for t in tensors if isinstance(t, torch.Tensor)}
            self.gpu.kernels.add("update", touched)
        return func(*args, **(kwargs or {}))
