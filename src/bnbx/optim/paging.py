"""Optimizer states in mapped files, so that states larger than the memory can be trained with.

That is for parameters on a CPU; ``paged_device.py`` has those of a GPU.

The files have no name: they are unlinked as they are made (``tempfile.TemporaryFile``). Nobody can
delete or shorten one by mistake while it is in use, and its space is free again as soon as the last
tensor in it is gone, also when the process was killed. ``df`` shows the space, ``du`` does not.

A file is mapped as a whole, longer than what is needed yet: holes cost no space. The space of each
tensor is reserved before it is handed out. So a full disk is an error when a state is made, and not
a bus error (SIGBUS) that ends the process when a page of it is written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import mmap
import os
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends.paged_memory import PAGED_DEVICES
from bnbx.ops import error
from bnbx.optim.manager import GlobalOptimManager
from bnbx.optim.paged_device import SMALLEST_BYTES, DevicePages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import SimpleNamespace

    from typing_extensions import Self

#: Smaller tensors stay in memory: the kernel moves whole pages.
_SMALLEST_BYTES = mmap.PAGESIZE
#: Tensors begin at multiples of it: a cache line, and as much as torch gives its own.
_ALIGNMENT = 64
#: Length of a file, most of it a hole at first, that takes states as they come.
_FILE_BYTES = 1 << 30
#: States updated in one call when the memory for them is not bounded: enough to prefetch while the
#: kernels are busy, and more than what starting a call costs.
_TURN_BYTES = 64 << 20
#: Environment variable for each argument of ``PagedMemory``.
_VARIABLES = {
    "directory": "BNBX_PAGED_DIRECTORY",
    "budget_bytes": "BNBX_PAGED_BUDGET_BYTES",
    "resident_bytes": "BNBX_PAGED_RESIDENT_BYTES",
}

_Span = tuple["_File", int, int]  # the file, the first byte and the one behind the last


class PagedMemory:
    """Where optimizer states lie in place of memory, and how much of it they may use.

    An optimizer that is given one as ``paging`` keeps the states of parameters on a CPU in files
    that are mapped into memory: the operating system reads what a step touches and writes it back
    when it needs the memory. Those of parameters on a GPU lie in main memory and move to the GPU
    for a step. The numbers are the same to the last bit. Tensors of less than a page (4096 bytes,
    64 KiB on a GPU) stay where their parameters are, and so do the states of groups and of
    parameters for which ``is_paged`` is False.

    Parameters
    ----------
    directory
        For parameters on a CPU, and for no others: where the files are made. It should be on a
        local disk with a file system that writes in place, such as ext4 or XFS: one that copies
        what it writes (Btrfs, ZFS) may lack the space later, which ends the process. In a tmpfs
        states would still take up memory.
    budget_bytes
        The most that the states of all optimizers with this object may reserve in this process,
        in bytes. None: whatever the disk or, for a GPU, main memory has.
    resident_bytes
        How much memory a step may use for paged states, in bytes, that of the GPU if the parameters
        are there: it updates a few parameters at a time, reads the states of the next ones
        meanwhile, and writes the last ones back. A single parameter is not divided. None: states
        stay in memory until others need it, which is faster if most of them fit.

    Raises
    ------
    ValueError
        If the directory does not exist or cannot be written, if a number is not a positive integer,
        or for a directory on Windows, where space cannot be reserved in this way.

    Notes
    -----
    The files have no name and vanish with the last tensor that lies in them, or with the process.
    A process that was forked off, such as the workers of a ``DataLoader``, may read the states of
    its parent but not update them. A disk that fails ends the process with SIGBUS, as is the way of
    mapped files. A copy of the optimizer (``deepcopy``, ``pickle``) has its
    states in memory until its first step, which moves them to a file of their own.

    Examples
    --------
    >>> paging = bnbx.optim.PagedMemory("/mnt/nvme", budget_bytes=200 * 2**30)
    >>> optimizer = bnbx.optim.AdamW8bit(model.parameters(), paging=paging)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        budget_bytes: int | None = None,
        resident_bytes: int | None = None,
    ) -> None:
        for name, value in (("budget_bytes", budget_bytes), ("resident_bytes", resident_bytes)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value > 0):
                raise error(name, "a positive number of bytes, or None for no bound", repr(value))
        self.directory = None if directory is None else _checked_directory(directory)
        self.budget_bytes = budget_bytes
        self.resident_bytes = resident_bytes
        self._parts: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def reserved_bytes(self) -> int:
        """The bytes that are reserved now."""
        return sum(part.used for part in self._parts)

    def add(self, part: Any) -> None:
        """Count the bytes that a file or a block of memory has ``used`` as long as it lives."""
        self._parts.add(part)

    def new_file(self, directory: Path, length: int) -> _File:
        """Return a file of that length without any space yet."""
        try:
            file = _File(directory, length)
        except OSError as failure:
            expected = f"room for a file of {length:,} bytes in {directory}"
            raise error("paging", expected, failure.strerror or failure) from failure
        self.add(file)
        return file

    def check_budget(self, nbytes: int) -> None:
        """Raise ``ValueError`` if that many bytes more would be above the budget."""
        if self.budget_bytes is not None and self.reserved_bytes + nbytes > self.budget_bytes:
            raise error(
                "budget_bytes",
                f"at least {self.reserved_bytes + nbytes:,} for the states in "
                f"{self.directory or 'main memory'}, "
                f"{self.reserved_bytes:,} of which are reserved",
                f"{self.budget_bytes:,}",
                "Raise it, use fewer bits, or set is_paged to False for some parameters.",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_parts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._parts = weakref.WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copy of an optimizer shares the budget

    def __repr__(self) -> str:
        directory = None if self.directory is None else str(self.directory)
        return f"PagedMemory({directory!r}, {self.budget_bytes}, {self.resident_bytes})"


def _checked_directory(directory: str | os.PathLike[str]) -> Path:
    if sys.platform == "win32":
        raise error("directory", "a POSIX system for states in a file", sys.platform)
    path = Path(directory).absolute()
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        got = "one that cannot be written" if path.is_dir() else "none"
        raise error("directory", "an existing directory", f"{got}: {path}", "Create it first.")
    return path


def paged_memory(given: object, is_paged: bool) -> PagedMemory | None:
    """Return where an optimizer keeps paged states: what it was given, or what the user has set.

    Parameters
    ----------
    given
        The argument ``paging``.
    is_paged
        Whether the environment is asked if there is no argument. Its variables are for programs
        that make the optimizer themselves, as the trainers of libraries do.

    Raises
    ------
    ValueError
        If ``given`` is something else than a ``PagedMemory``, or if a variable is malformed.
    """
    if given is not None and not isinstance(given, PagedMemory):
        hint = "Pass bnbx.optim.PagedMemory(directory)."
        raise error("paging", "a PagedMemory, or None", repr(given), hint)
    if given is not None or not is_paged:
        return given
    values = tuple(os.environ.get(variable) for variable in _VARIABLES.values())
    return None if values == (None,) * len(values) else _of_environment(*values)


@functools.lru_cache
def _of_environment(directory: str | None, *numbers: str | None) -> PagedMemory:
    """Return the one memory for these values, so that the budget bounds the whole process."""
    for variable, number in zip(list(_VARIABLES.values())[1:], numbers, strict=True):
        if number is not None and not number.isdecimal():
            raise error(variable, "a number of bytes", repr(number))
    return PagedMemory(directory, *(None if n is None else int(n) for n in numbers))


def paged_parameters(groups: list[dict[str, Any]], settings: SimpleNamespace) -> set[Tensor]:
    """Return the parameters of ``groups`` for which ``is_paged`` holds, with their overrides."""
    overrides = GlobalOptimManager.get_instance().overrides()
    return {
        p
        for group in groups
        for p in group["params"]
        if {**vars(settings), **group, **overrides.get(id(p), {})}["is_paged"]
    }


class _File(mmap.mmap):
    """A file without a name, mapped as a whole. It lives as long as a tensor that lies in it."""

    def __new__(cls, directory: Path, length: int) -> Self:
        # Unbuffered, because nothing is written but through the mapping.
        with tempfile.TemporaryFile(prefix="bnbx-", dir=directory, buffering=0) as file:
            os.ftruncate(file.fileno(), length)
            self = super().__new__(cls, file.fileno(), length)
            self.descriptor = os.dup(file.fileno())
        # Not at exit: a step of another exit handler would check what then has that number.
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        self.directory = directory
        self.used = 0
        self.address = torch.frombuffer(self, dtype=torch.uint8).data_ptr()
        return self

    descriptor: int
    directory: Path
    used: int
    address: int

    def reserve(self, nbytes: int) -> int:
        """Reserve space for the next bytes, which are zero, and return where they begin."""
        start = self.used
        try:
            _reserve(self.descriptor, start, nbytes)
        except OSError as failure:
            self.shrink(start)  # some of it may have been reserved
            disk = os.fstatvfs(self.descriptor)
            got = f"{disk.f_bavail * disk.f_frsize:,} bytes free ({failure.strerror})"
            hint = "Free some, or choose another directory."
            expected = f"{nbytes:,} bytes more for states in {self.directory}"
            raise error("paging", expected, got, hint) from failure
        self.used += nbytes
        return start

    def shrink(self, used: int) -> None:
        """Give back all space behind the first ``used`` bytes."""
        self.used = used
        os.ftruncate(self.descriptor, used)
        os.ftruncate(self.descriptor, len(self))

    def check(self) -> None:
        """Raise ``ValueError`` if bytes are missing, before touching them ends the process."""
        try:
            size = os.fstat(self.descriptor).st_size
            got = f"{size:,} bytes"
        except OSError as failure:  # a file server that has lost it
            size, got = 0, str(failure.strerror)
        if size < len(self):
            raise error(
                "paging",
                f"a file of {len(self):,} bytes in {self.directory}, as it was made",
                got,
                "The states are lost, the parameters are those of the last finished step: go on "
                "from a checkpoint with load_state_dict.",
            )


def _reserve(descriptor: int, start: int, nbytes: int) -> None:
    disk = os.fstatvfs(descriptor)
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < nbytes:
        # Without asking, others would find the disk full until this has failed.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if sys.platform != "darwin":
        os.posix_fallocate(descriptor, start, nbytes)
        return
    zeros = memoryview(bytes(1 << 20))
    end = start + nbytes
    while start < end:
        written = os.pwrite(descriptor, zeros[: end - start], start)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        start += written


class Pages:
    """The paged states of one optimizer.

    Those of a CPU are in files, or in plain memory if ``memory`` has no directory; those of a GPU
    in memory that it shares with the CPU.
    """

    def __init__(self, memory: PagedMemory | None) -> None:
        self._memory = memory
        self._devices: dict[torch.device, DevicePages] = {}
        self._files: weakref.WeakSet[_File] = weakref.WeakSet()
        self._process = os.getpid()

    def zeros_for(self, p: Tensor) -> Callable[..., Tensor]:
        """Return ``zeros`` if the states of a parameter can be paged.

        Raises
        ------
        ValueError
            If nothing pages on its device, or if it is not there that the memory is.
        """
        directory = None if self._memory is None else self._memory.directory
        if p.device.type in PAGED_DEVICES:
            if directory is not None:
                expected = f"a PagedMemory without a directory for parameters on {p.device}"
                hint = "Their states lie in main memory. Files are for parameters on a CPU."
                raise error("paging", expected, self._memory, hint)
        elif p.device.type not in {"cpu", "meta"}:
            expected = f"False for parameters on {p.device}, for which no kernels are loaded"
            hint = "`python -m bnbx` says why; or use the class without Paged in its name."
            raise error("is_paged", expected, True, hint)
        elif p.device.type == "cpu" and self._memory is not None and directory is None:
            expected = "a PagedMemory with a directory for parameters on a CPU"
            raise error("paging", expected, self._memory)
        return self.zeros

    def _on(self, device: torch.device) -> DevicePages | None:
        if device.type not in PAGED_DEVICES:
            return None
        if device not in self._devices:
            self._devices[device] = DevicePages(self._memory, device)
        return self._devices[device]

    def zeros(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor of zeros, as ``torch.zeros`` does.

        Raises
        ------
        ValueError
            If the budget, the disk or main memory does not have the space.
        """
        on_device = self._on(device)
        if on_device is not None:
            return on_device.zeros(shape, dtype)
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        directory = None if self._memory is None else self._memory.directory
        if (
            self._memory is None
            or directory is None
            or device.type != "cpu"
            or nbytes < _SMALLEST_BYTES
        ):
            return torch.zeros(shape, dtype=dtype, device=device)
        nbytes = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self._memory.check_budget(nbytes)
        file = next((f for f in self._files if len(f) - f.used >= nbytes), None)
        if file is None:
            file = self._memory.new_file(directory, max(nbytes, _FILE_BYTES))
            self._files.add(file)
        start = file.reserve(nbytes)
        return torch.frombuffer(file, dtype=dtype, count=count, offset=start).view(shape)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Give back what was reserved inside if it fails: half a state is of no use."""
        before = {file: file.used for file in self._files}
        try:
            yield
        except ValueError:
            for file, used in before.items():
                file.shrink(used)
            raise

    def place(self, value: Tensor) -> Tensor:
        """Return a state where it belongs: itself if it is there, or a copy."""
        on_device = self._on(value.device)
        if on_device is not None:
            placed = on_device.has(value) or value.nbytes < SMALLEST_BYTES
        else:
            in_files = value.device.type == "cpu" and self._memory is not None
            placed = not in_files or value.nbytes < _SMALLEST_BYTES or self._span(value) is not None
        if placed:
            return value
        return self.zeros(value.shape, dtype=value.dtype, device=value.device).copy_(value)

    def check(self) -> None:
        """Raise ``ValueError`` if a file has been shortened."""
        for file in self._files:
            file.check()

    def check_step(self) -> None:
        """Raise ``ValueError`` if the states cannot be updated or are not this process' own."""
        if self._files and os.getpid() != self._process:
            raise error(
                "paging",
                f"a step in the process that made the states, {self._process}",
                f"one in process {os.getpid()}, which was forked off",
                "Make the optimizer in the process that trains.",
            )
        self.check()

    def turns(
        self, states: list[dict[str, Any]], device: torch.device
    ) -> Iterator[tuple[int, int]]:
        """Yield which of the ``states`` to update next, as begin and end of a slice.

        While the caller updates them, those of the next turn are read. With ``resident_bytes``
        they are then given up: unmapped and, one turn later, when the disk has had time to write
        them, dropped from the memory of the system.
        """
        on_device = self._devices.get(device)  # none that is not paged pays for those that are
        if on_device is not None:
            yield from on_device.turns(states)
            return
        bound = None if self._memory is None else self._memory.resident_bytes
        if bound is None and sum(file.used for file in self._files) <= _TURN_BYTES:
            yield 0, len(states)
            return
        # Three turns are in memory at a time: one being written, one updated, one read.
        turns = list(self._turns(states, _TURN_BYTES if bound is None else bound // 3))
        before: list[_Span] = []
        for number, (start, stop, spans) in enumerate(turns):
            for file, first, last in turns[number + 1][2] if number + 1 < len(turns) else []:
                file.madvise(mmap.MADV_WILLNEED, first, last - first)
            yield start, stop
            if bound is not None:
                _unmap(spans)
                _drop(before)
                before = spans
        _drop(before)

    def _turns(
        self, states: list[dict[str, Any]], limit: int
    ) -> Iterator[tuple[int, int, list[_Span]]]:
        """Divide ``states`` so that each part has at most ``limit`` paged bytes, or one state."""
        start, nbytes, spans = 0, 0, list[_Span]()
        for number, state in enumerate(states):
            own = [s for v in state.values() if isinstance(v, Tensor) and (s := self._span(v))]
            more = sum(last - first for _, first, last in own)
            if number > start and nbytes + more > limit:
                yield start, number, _merged(spans)
                start, nbytes, spans = number, 0, []
            nbytes += more
            spans += own
        yield start, len(states), _merged(spans)

    def _span(self, tensor: Tensor) -> _Span | None:
        """Return where a tensor lies, or None if it is not in a file."""
        address = tensor.data_ptr()
        for file in self._files:
            first = address - file.address
            if 0 <= first < file.used:
                return file, first, first + tensor.nbytes
        return None


def _merged(spans: list[_Span]) -> list[_Span]:
    """Return the spans in whole pages, those that touch as one."""
    merged: list[_Span] = []
    for file, first, last in sorted(spans, key=lambda span: (span[0].address, span[1])):
        page = first - first % mmap.PAGESIZE
        if merged and merged[-1][0] is file and page <= merged[-1][2]:
            merged[-1] = (file, merged[-1][1], last)
        else:
            merged.append((file, page, last))
    return merged


def _unmap(spans: Iterable[_Span]) -> None:
    """Let the system have the pages, and begin to write them."""
    for file, first, last in spans:
        file.madvise(mmap.MADV_DONTNEED, first, last - first)
        _advise_done(file, first, last)


def _drop(spans: Iterable[_Span]) -> None:
    """Wait until the pages are written, and take them out of the memory of the system."""
    for file, first, last in spans:
        file.flush(first, last - first)
        _advise_done(file, first, last)


def _advise_done(file: _File, first: int, last: int) -> None:
    if sys.platform != "darwin":  # which has no such call
        os.posix_fadvise(file.descriptor, first, last - first, os.POSIX_FADV_DONTNEED)
