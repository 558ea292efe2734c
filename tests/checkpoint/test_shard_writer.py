"""The writer of safetensors: any order of tensors, read by the library of the format."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from bnbx.checkpoint.shard_writer import ShardWriter, Slot
from bnbx.checkpoint.tensor_file import DTYPES, TensorFile


def test_safetensors_reads_what_it_writes(tmp_path):
    tensors = {
        f"{i}.{j}": torch.randint(0, 2, shape).to(dtype)
        for i, dtype in enumerate(DTYPES.values())
        for j, shape in enumerate([(), (0,), (3,), (5, 7)])
    }
    late = {f"late.{i}": torch.randint(0, 256, (i,), dtype=torch.uint8) for i in (0, 1, 130, 4096)}
    slots = [Slot(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    slots += [Slot(name, torch.uint8, None) for name in late]
    tensors |= late
    names = list(tensors)
    order = [names[i] for i in torch.randperm(len(names)).tolist()]
    with ShardWriter(tmp_path / "a.safetensors", slots) as writer:
        for name in order:
            writer.write(name, tensors[name])
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tensors)
        for name, expected in tensors.items():
            got = file.get_tensor(name)
            assert got.shape == expected.shape
            assert got.dtype == expected.dtype
            assert torch.equal(got.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert all(entry.offset % entry.dtype.itemsize == 0 for entry in file.tensors.values())


def test_metadata(tmp_path):
    metadata = {"format": "np", "title": 'a "Llama" 🦙', "": "x" * 5000}
    with ShardWriter(tmp_path / "a", [Slot("x", torch.uint8, None)], metadata) as writer:
        writer.write("x", torch.ones(3, dtype=torch.uint8))
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {**metadata, "format": "pt"}
        assert torch.equal(file.get_tensor("x"), torch.ones(3, dtype=torch.uint8))


def test_in_pieces(tmp_path):
    expected = torch.arange(10, dtype=torch.uint8)
    with ShardWriter(tmp_path / "a", [Slot("x", torch.uint8, (10,))]) as writer:
        writer.write_piece("x", 6, memoryview(bytes(range(6, 10))))
        writer.write_piece("x", 0, memoryview(bytes(range(6))))
    with TensorFile(tmp_path / "a") as file:
        assert torch.equal(file.read("x"), expected)


def test_what_was_planned_and_not_written(tmp_path):
    slots = [Slot("x", torch.uint8, (1,)), Slot("y", torch.uint8, (1,))]

    def incomplete():
        with ShardWriter(tmp_path / "a", slots) as writer:
            writer.write("x", torch.zeros(1, dtype=torch.uint8))

    with pytest.raises(RuntimeError, match=r"not written: \['y'\]"):
        incomplete()


def test_what_was_not_planned_so(tmp_path):
    with ShardWriter(tmp_path / "a", [Slot("x", torch.uint8, (1,))]) as writer:
        for wrong in (torch.zeros(2, dtype=torch.uint8), torch.zeros(1)):
            with pytest.raises(RuntimeError, match="planned as"):
                writer.write("x", wrong)
        writer.write("x", torch.ones(1, dtype=torch.uint8))


def test_overwrites_nothing(tmp_path):
    (tmp_path / "a").write_text("here")
    with pytest.raises(FileExistsError):
        ShardWriter(tmp_path / "a", [])
