"""Writes a safetensors file tensor by tensor, in whatever order they come."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.checkpoint.tensor_file import DTYPE_NAMES, METADATA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

#: What readers of safetensors align the data to.
ALIGNMENT = 8
#: More than a quantization state in JSON takes.
LARGEST_LATE = 4096


@dataclasses.dataclass(frozen=True)
class Slot:
    """A tensor that is to be written.

    Attributes
    ----------
    name, dtype, shape
        As in the header. Without a shape it is a short vector of bytes whose length is known when
        it comes: the JSON of a quantization state.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None

    @property
    def nbytes(self) -> int:
        """Bytes, or the most that there can be."""
        return LARGEST_LATE if self.shape is None else math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """A safetensors file in the making; a context manager.

    The header gets its room, and every tensor of known size its offset, before the first byte is
    written; what has no size yet comes last. So nothing large is kept in memory. The file is
    complete and on the disk when the context ends without an exception.

    Parameters
    ----------
    path
        A file that does not exist.
    slots
        All tensors that will be written.
    metadata
        Of the header. ``format`` is ``pt`` in any case, without which transformers reads no file.
    """

    def __init__(
        self, path: Path, slots: Sequence[Slot], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._metadata = {**(metadata or {}), "format": "pt"}
        self._slots = {slot.name: slot for slot in slots}
        self._missing = set(self._slots)
        self._late: dict[str, bytes] = {}
        self._offsets: dict[str, int] = {}
        # Wide elements first: every tensor then begins at a multiple of its element's size.
        known = [slot for slot in slots if slot.shape is not None]
        self._end = 0
        for slot in sorted(known, key=lambda slot: -slot.dtype.itemsize):
            self._offsets[slot.name] = self._end
            self._end += slot.nbytes
        self._start = self._room_of_header()
        self._file = path.open("xb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._finish()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, whole."""
        slot = self._slots[name]
        if tensor.dtype != slot.dtype or (slot.shape not in {None, tuple(tensor.shape)}):
            msg = f"planned as {slot}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise RuntimeError(msg)
        data = as_bytes(tensor)
        if slot.shape is None:
            self._late[name] = data.tobytes()
            self._missing.discard(name)
        else:
            self.write_piece(name, 0, data)

    def write_piece(self, name: str, start: int, data: memoryview) -> None:
        """Write bytes of a tensor of known size, ``start`` bytes after its first."""
        self._write_at(self._start + self._offsets[name] + start, data)
        self._missing.discard(name)

    def _room_of_header(self) -> int:
        """Return where the data begins: behind the longest header that there can be."""
        total = sum(slot.nbytes for slot in self._slots.values())
        longest = self._header(
            (slot, (LARGEST_LATE,) if slot.shape is None else slot.shape, total, total)
            for slot in self._slots.values()
        )
        return -(-(8 + len(longest)) // ALIGNMENT) * ALIGNMENT

    def _finish(self) -> None:
        if self._missing:
            msg = f"planned and not written: {sorted(self._missing)}"
            raise RuntimeError(msg)
        for name, data in self._late.items():
            self._offsets[name] = self._end
            self._write_at(self._start + self._end, memoryview(data))
            self._end += len(data)
        rows = []
        for name, begin in self._offsets.items():
            slot = self._slots[name]
            shape = (len(self._late[name]),) if slot.shape is None else slot.shape
            rows.append((slot, shape, begin, begin + math.prod(shape) * slot.dtype.itemsize))
        header = self._header(rows).ljust(self._start - 8)
        self._write_at(0, memoryview(len(header).to_bytes(8, "little") + header))
        os.fsync(self._file.fileno())

    def _header(self, rows: Iterable[tuple[Slot, tuple[int, ...], int, int]]) -> bytes:
        """Return the JSON for tensors with their shapes, begins and ends."""
        entries = {
            slot.name: {
                "dtype": DTYPE_NAMES[slot.dtype],
                "shape": shape,
                "data_offsets": (begin, end),
            }
            for slot, shape, begin, end in rows
        }
        return json.dumps({METADATA: self._metadata, **entries}, separators=(",", ":")).encode()

    def _write_at(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        while data:
            data = data[self._file.write(data) :]


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a tensor of the CPU, of a copy if it is not contiguous."""
    data: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(data)
