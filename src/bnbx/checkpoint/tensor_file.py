"""Reads safetensors files tensor by tensor; nothing in a file is believed before it is checked."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import reprlib
import stat
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

#: The entry of a header that is no tensor.
METADATA = "__metadata__"
#: The format's own limit; a header of a million tensors stays below it.
MAX_HEADER = 100_000_000
#: Bytes of JSON. Metadata go into every file of a result and must leave room in its header for the
#: tensors; training settings and thumbnails, the largest that are found, take less.
MAX_METADATA = 10_000_000
#: Bytes that are read at a time where a tensor need not be whole.
CHUNK = 1 << 23
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor.

    Attributes
    ----------
    name, dtype, shape
        As in the header.
    offset
        First byte, counted from the begin of the file.
    nbytes
        Bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """An open safetensors file; a context manager.

    Parameters
    ----------
    path
        The file. It is opened once: what is checked is what is read, whatever happens to the name.

    Attributes
    ----------
    tensors
        The entries of the header by name, in the order of their bytes.
    metadata
        What ``__metadata__`` in the header says; nothing without it.

    Raises
    ------
    ValueError
        If it is not a regular file, is truncated or longer than its header says, or if the header
        is too long, not JSON, names a tensor twice, has offsets that overlap, leave holes or do
        not fit shape and dtype, or metadata that are too long or anything but strings.
    OSError
        If it cannot be read.

    References
    ----------
    https://github.com/huggingface/safetensors, "Format".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not blocking: a pipe in the place of a file must not wait for its other end.
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, os.O_RDONLY | flags)
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self.metadata: dict[str, str] = {}
        try:
            self.tensors = {entry.name: entry for entry in self._entries()}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str) -> Tensor:
        """Return a tensor in memory of its own."""
        entry = self.tensors[name]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=entry.dtype)
        buffer = bytearray(entry.nbytes)
        self._read_into(memoryview(buffer), entry.offset)
        return torch.frombuffer(buffer, dtype=entry.dtype).view(entry.shape)

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor's elements, flat, a few megabytes at a time; each may be overwritten."""
        entry = self.tensors[name]
        buffer = bytearray(min(CHUNK, entry.nbytes))
        for start in range(0, entry.nbytes, CHUNK):
            piece = memoryview(buffer)[: min(CHUNK, entry.nbytes - start)]
            self._read_into(piece, entry.offset + start)
            yield torch.frombuffer(piece, dtype=entry.dtype)

    def _read_into(self, target: memoryview, offset: int) -> None:
        self._file.seek(offset)
        while target:
            count = self._file.readinto(target)
            if not count:
                raise error(f"{self.path}", "a file that keeps its size", "an end before its end")
            target = target[count:]

    def _entries(self) -> list[TensorEntry]:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise self._error("a regular file", "something else")
        header, start = self._header(status.st_size)
        self.metadata = checked_metadata(header.pop(METADATA, {}), f"{self.path}")
        entries = [self._entry(*item, start) for item in header.items()]
        # Tensors without elements come before the one that begins where they are.
        entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
        end = start
        for entry in entries:
            if entry.offset != end:
                what = "a hole before it" if entry.offset > end else "bytes of another one"
                raise self._error("tensors one after the other", what, entry.name)
            end = entry.offset + entry.nbytes
        if end != status.st_size:
            what = "truncated" if end > status.st_size else "with bytes that belong to no tensor"
            raise self._error(f"{end} bytes", f"{status.st_size}: the file is {what}")
        return entries

    def _header(self, size: int) -> tuple[dict[str, Any], int]:
        """Return the header and where the data begins."""
        if size < 8:
            raise self._error("a safetensors file", f"{size} bytes: the file is truncated")
        prefix = bytearray(8)
        self._read_into(memoryview(prefix), 0)
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER:
            raise self._error(f"a header of at most {MAX_HEADER} bytes", length)
        if 8 + length > size:
            got = f"a file of {size} bytes: it is truncated, or not safetensors"
            raise self._error(f"a header of {length} bytes", got)
        text = bytearray(length)
        self._read_into(memoryview(text), 8)
        return parse_json(bytes(text), f"{self.path}, header"), 8 + length

    def _entry(self, name: str, value: Any, start: int) -> TensorEntry:
        keys = {"dtype", "shape", "data_offsets"}
        if not isinstance(value, dict) or value.keys() != keys:
            raise self._error(f"the entries {sorted(keys)}", reprlib.repr(value), name)
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._error(f"a dtype among {sorted(DTYPES)}", reprlib.repr(dtype), name)
        if not _are_sizes(shape):
            raise self._error("a list of sizes", reprlib.repr(shape), name)
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise self._error("two data_offsets", reprlib.repr(offsets), name)
        if math.prod(size or 1 for size in shape) >= 2**63:
            raise self._error("a shape of less than 2**63 elements", reprlib.repr(shape), name)
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != nbytes:
            what = f"{nbytes} bytes between data_offsets for {dtype} of shape {shape}"
            raise self._error(what, reprlib.repr(offsets), name)
        return TensorEntry(name, DTYPES[dtype], tuple(shape), start + offsets[0], nbytes)

    def _error(self, expected: object, got: object, tensor: str | None = None) -> ValueError:
        where = f"{self.path}" if tensor is None else f"{self.path}, tensor {printable(tensor)}"
        return error(where, expected, got)


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def checked_metadata(value: Any, name: str) -> dict[str, str]:
    """Return what a header has for ``__metadata__``, if it is few enough strings.

    Parameters
    ----------
    value
        As JSON has it.
    name
        What an error calls the file.

    Raises
    ------
    ValueError
        If it is anything else, or has half a surrogate pair, which readers of the format refuse.
    """
    if not isinstance(value, dict):
        raise error(name, f"an object as {METADATA}", reprlib.repr(value))
    for key, text in value.items():
        if not isinstance(text, str) or not (_is_unicode(key) and _is_unicode(text)):
            got = f"{reprlib.repr(text)} for {reprlib.repr(key)}"
            raise error(name, f"Unicode strings in {METADATA}", got)
    size = len(json.dumps(value))
    if size > MAX_METADATA:
        raise error(name, f"at most {MAX_METADATA} bytes of {METADATA}", size)
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: bytes, name: str) -> dict[str, Any]:
    """Return a JSON object, in which no key may stand twice.

    Parameters
    ----------
    text
        UTF-8.
    name
        What an error calls it.

    Raises
    ------
    ValueError
        If it is not one.
    """
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            counts = collections.Counter(key for key, _ in pairs)
            twice.extend(key for key, count in counts.items() if count > 1)
        return values

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as failure:  # no UTF-8, no JSON, a number too long to read
        got = f"bytes that are none ({type(failure).__name__})"
        raise error(name, "a JSON object", got) from failure
    if twice:
        raise error(name, "each name once", f"{printable(twice[0])} twice")
    if not isinstance(value, dict):
        raise error(name, "a JSON object", f"a JSON {type(value).__name__}")
    return value


def printable(name: str) -> str:
    """Return a name from a file as a terminal may show it."""
    return name if name.isprintable() and name else repr(name)
