"""The reader of safetensors: right files by tensor, wrong ones refused before anything is read."""

from __future__ import annotations

import json
import os
import re
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bnbx.checkpoint.tensor_file import (
    CHUNK,
    DTYPES,
    MAX_HEADER,
    MAX_METADATA,
    TensorFile,
    printable,
)

from .models import raw


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_writes(tmp_path):
    tensors = {}
    for i, dtype in enumerate(DTYPES.values()):
        for shape in [(), (0,), (3,), (2, 5), (0, 4)]:
            values = torch.randint(0, 2, shape).to(dtype)
            tensors[f"{i}.{len(shape)}.{len(values.flatten())}"] = values
    save_file(tensors, tmp_path / "a.safetensors")
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert file.tensors.keys() == tensors.keys()
        for name, expected in tensors.items():
            got = file.read(name)
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            assert torch.equal(got.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))
            chunks = [chunk.clone() for chunk in file.chunks(name)]
            joined = torch.cat(chunks) if chunks else torch.empty(0, dtype=expected.dtype)
            assert torch.equal(joined, expected.view(-1))


def test_chunks_are_a_few_megabytes(tmp_path):
    expected = torch.randn(CHUNK // 4 * 2 + 3)
    save_file({"x": expected}, tmp_path / "a.safetensors")
    with TensorFile(tmp_path / "a.safetensors") as file:
        pieces = [piece.clone() for piece in file.chunks("x")]
    assert [piece.nbytes for piece in pieces] == [CHUNK, CHUNK, 12]
    assert torch.equal(torch.cat(pieces), expected)


GOOD = {"a": entry([2], 0, 8), "b": entry([1], 8, 12)}
BAD = {
    "empty file": (b"", "0 bytes: the file is truncated"),
    "part of the length": (b"\x10\0\0", "3 bytes: the file is truncated"),
    "huge header": (raw({}, length=2**63), f"at most {MAX_HEADER} bytes"),
    "header beyond the end": (raw({}, length=4096), "truncated"),
    "truncated data": (raw(GOOD, bytes(11)), "the file is truncated"),
    "bytes after the end": (raw(GOOD, bytes(13)), "belong to no tensor"),
    "overlap": (
        raw({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "tensor b.*bytes of",
    ),
    "same bytes": (
        raw({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
        "bytes of another",
    ),
    "hole": (raw({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)), "tensor b.*a hole"),
    "hole at the begin": (raw({"a": entry([1], 4, 8)}, bytes(8)), "tensor a.*a hole"),
    "end before begin": (raw({"a": entry([1], 8, 4)}, bytes(8)), "4 bytes between"),
    "negative": (raw({"a": entry([1], -4, 0)}, bytes(4)), "two data_offsets"),
    "negative size": (raw({"a": entry([-1, -1], 0, 4)}, bytes(4)), "a list of sizes"),
    "beyond the end": (raw({"a": entry([2**40], 0, 2**42)}, bytes(8)), "truncated"),
    "sizes that overflow": (raw({"a": entry([2**62, 2**62], 0, 0)}), "less than 2.*63 elements"),
    "empty, with sizes that overflow": (
        raw({"a": entry([0, 2**62, 2**62], 0, 0)}),
        "less than 2.*63 elements",
    ),
    "many dimensions": (raw({"a": entry([1] * 65, 0, 4)}, bytes(4)), "a list of sizes"),
    "size no number": (raw({"a": entry([True], 0, 4)}, bytes(4)), "a list of sizes"),
    "shape no list": (raw({"a": entry("4", 0, 4)}, bytes(4)), "a list of sizes"),
    "shape and bytes": (raw({"a": entry([3], 0, 4)}, bytes(4)), "12 bytes between"),
    "three offsets": (
        raw({"a": {**entry([1], 0, 4), "data_offsets": [0, 4, 4]}}, bytes(4)),
        "two data_offsets",
    ),
    "unknown dtype": (raw({"a": entry([1], 0, 4, "F31")}, bytes(4)), "a dtype among"),
    "dtype no name": (raw({"a": entry([1], 0, 4, ["F32"])}, bytes(4)), "a dtype among"),
    "entry missing": (raw({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "the entries"),
    "entry no object": (raw({"a": 3}), "the entries"),
    "not JSON": (raw(b"{nonsense"), "bytes that are none"),
    "a long number": (raw(b'{"a": ' + b"1" * 5000 + b"}"), "bytes that are none"),
    "a number that is none": (raw(b'{"a": NaN}'), "the entries"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "bytes that are none"),
    "a list": (raw([]), "a JSON list"),
    "deep": (raw(b"[" * 100_000), "bytes that are none"),
    "name twice": (
        raw(f'{{"a": {json.dumps(GOOD["a"])}, "a": {json.dumps(GOOD["a"])}}}'.encode(), bytes(8)),
        "got a twice",
    ),
    "a pickle": (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u." + bytes(64), "header"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        TensorFile(path)
    assert re.match(re.escape(str(path)), str(refused.value))


def test_the_good_one_is_good(tmp_path):
    (tmp_path / "good").write_bytes(raw({**GOOD, "__metadata__": {"format": "pt"}}, bytes(12)))
    with TensorFile(tmp_path / "good") as file:
        assert list(file.tensors) == ["a", "b"]
        assert file.metadata == {"format": "pt"}


@pytest.mark.parametrize("metadata", [{}, {"": "", "modelspec.title": "Größe 🦙", "n": "1\n2"}])
def test_metadata_are_those_of_safetensors(tmp_path, metadata):
    save_file({"a": torch.ones(1)}, tmp_path / "a", metadata)
    with TensorFile(tmp_path / "a") as file, safe_open(tmp_path / "a", "pt") as theirs:
        assert file.metadata == (theirs.metadata() or {}) == metadata


def test_no_metadata(tmp_path):
    (tmp_path / "a").write_bytes(raw(GOOD, bytes(12)))
    with TensorFile(tmp_path / "a") as file:
        assert file.metadata == {}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "an object as __metadata__, got []"),
        (None, "an object as __metadata__, got None"),
        ({"a": 1}, "Unicode strings in __metadata__, got 1 for 'a'"),
        ({"a": None}, "got None for 'a'"),
        ({"a": {"b": "c"}}, "got {'b': 'c'} for 'a'"),
        ({"a": "\ud800"}, "Unicode strings"),
        ({"\udfff": "a"}, "Unicode strings"),
        ({"a": "x" * MAX_METADATA}, f"at most {MAX_METADATA} bytes of __metadata__"),
    ],
)
def test_metadata_that_are_refused(tmp_path, metadata, message):
    (tmp_path / "a").write_bytes(raw({**GOOD, "__metadata__": metadata}, bytes(12)))
    with pytest.raises(ValueError, match=re.escape(message)):
        TensorFile(tmp_path / "a")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(raw(GOOD, bytes(12)))
    with TensorFile(path) as file:
        os.truncate(path, path.stat().st_size - 6)
        with pytest.raises(ValueError, match="keeps its size"):
            file.read("b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    caught = []

    def read():
        try:
            TensorFile(tmp_path / "pipe")
        except ValueError as failure:
            caught.append(failure)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert "a regular file" in str(caught[0])


def test_names_for_terminals():
    assert printable("model.weight") == "model.weight"
    assert printable("\x1b[2J") == "'\\x1b[2J'"
    assert printable("") == "''"
