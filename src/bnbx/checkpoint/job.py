"""The work on one checkpoint: what each tensor becomes, in which file, and writing it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bnbx.checkpoint.finite import check_finite
from bnbx.checkpoint.output import copy_file, write_file
from bnbx.checkpoint.report import TensorReport
from bnbx.checkpoint.shard_writer import ShardWriter, Slot, as_bytes
from bnbx.checkpoint.source import CONFIG, INDEX, SUFFIX, WEIGHTS
from bnbx.checkpoint.tensor_file import printable
from bnbx.ops import error
from bnbx.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from bnbx.checkpoint.formats import Settings
    from bnbx.checkpoint.layers import Weights
    from bnbx.checkpoint.source import Checkpoint
    from bnbx.checkpoint.tensor_file import TensorEntry


class Job:
    """A checkpoint, what of it is to be quantized, and how.

    Parameters
    ----------
    checkpoint, weights, settings
        The source, the decision for each of its tensors, and the format.
    max_shard_size
        Bytes of tensors in a file, unless a single layer needs more.
    """

    def __init__(
        self, checkpoint: Checkpoint, weights: Weights, settings: Settings, max_shard_size: int
    ) -> None:
        self._checkpoint = checkpoint
        self._weights = weights
        self._settings = settings
        self._tensors = checkpoint.tensors
        self._slots = {name: self._slots_of(entry) for name, entry in self._tensors.items()}
        self._check_names()
        self._shards = self._divided(max_shard_size)
        self._encoded: dict[str, dict[str, Tensor]] = {}

    def size(self) -> int:
        """Return the bytes of all tensors of the result, at most."""
        return sum(slot.nbytes for slots in self._slots.values() for slot in slots)

    def reports(self) -> Iterable[TensorReport]:
        """Yield what becomes of each tensor."""
        for name, entry in self._tensors.items():
            reason = self._weights.kept.get(name, "")
            yield TensorReport(
                name=name,
                shape=entry.shape,
                dtype=str(entry.dtype).removeprefix("torch."),
                kind="kept" if reason else self._settings.kind,
                reason=reason,
                bytes_before=entry.nbytes,
                bytes_after=sum(
                    slot.nbytes for slot in self._slots[name] if slot.shape is not None
                ),
            )

    def use(self, encoded: dict[str, dict[str, Tensor]]) -> None:
        """Take the entries of weights that are quantized already: weight -> entries by name."""
        self._encoded = encoded

    def write(self, directory: Path, file: str | None, *, progress: bool) -> list[str]:
        """Write the result into a directory and return the names of its files.

        Parameters
        ----------
        directory
            An empty one.
        file
            Name of the one file; None for the files of a model.
        progress
            Whether to show a progress bar.
        """
        total = sum(entry.nbytes for entry in self._tensors.values())
        names = [file] if file else _shard_names(len(self._shards))
        metadata = self._checkpoint.metadata
        with Progress(total, f"to {self._settings.kind}", "B", show=progress) as bar:
            for name, shard in zip(names, self._shards, strict=True):
                slots = [slot for entry in shard for slot in self._slots[entry.name]]
                with ShardWriter(directory / name, slots, metadata) as writer:
                    for entry in shard:
                        self._write_tensor(writer, entry)
                        bar.advance(entry.nbytes, entry.name)
        others = {} if file else self._json_files(names)
        for name, content in others.items():
            write_file(directory / name, (json.dumps(content, indent=2) + "\n").encode())
        return [*names, *others]

    def copy(self, directory: Path, names: Sequence[str]) -> None:
        """Copy files of the source into a directory, as they are."""
        for name in names:
            copy_file(self._checkpoint.resolved(name), directory / name)

    def _slots_of(self, entry: TensorEntry) -> list[Slot]:
        transposed = self._weights.transposed.get(entry.name)
        if transposed is None:
            return [Slot(entry.name, entry.dtype, entry.shape)]
        return self._settings.slots(entry.name, entry.shape[::-1] if transposed else entry.shape)

    def _check_names(self) -> None:
        seen: set[str] = set()
        for slots in self._slots.values():
            for slot in slots:
                if slot.name in seen:
                    got = f"{printable(slot.name)}, which a quantized weight needs for itself"
                    raise error("src", "names of tensors that are free", got)
                seen.add(slot.name)

    def _divided(self, max_shard_size: int) -> list[list[TensorEntry]]:
        """Return the tensors file by file; what belongs to a weight stays together."""
        shards: list[list[TensorEntry]] = [[]]
        size = 0
        for name, entry in self._tensors.items():
            more = sum(slot.nbytes for slot in self._slots[name])
            if shards[-1] and size + more > max_shard_size:
                shards.append([])
                size = 0
            shards[-1].append(entry)
            size += more
        return shards

    def _write_tensor(self, writer: ShardWriter, entry: TensorEntry) -> None:
        file = self._checkpoint.file_of(entry.name)
        transposed = self._weights.transposed.get(entry.name)
        if transposed is not None:
            encoded = self._encoded.pop(entry.name, None)
            if encoded is None:
                weight = file.read(entry.name)
                check_finite(entry.name, weight)
                encoded = self._settings.encode(entry.name, weight.t() if transposed else weight)
            for name, tensor in encoded.items():
                writer.write(name, tensor)
            return
        done = 0
        for piece in file.chunks(entry.name):
            check_finite(entry.name, piece)
            writer.write_piece(entry.name, done, as_bytes(piece))
            done += piece.nbytes
        if not entry.nbytes:
            writer.write_piece(entry.name, 0, memoryview(b""))

    def _json_files(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the content of the index, if one is needed, and of config.json."""
        files = {}
        if len(names) > 1:
            weight_map = {
                slot.name: file
                for file, shard in zip(names, self._shards, strict=True)
                for entry in shard
                for slot in self._slots[entry.name]
            }
            size = sum(report.bytes_after for report in self.reports())
            files[INDEX] = {"metadata": {"total_size": size}, "weight_map": weight_map}
        if self._checkpoint.config:
            dtype = next(self._tensors[name].dtype for name in self._weights.transposed)
            settings = self._settings.config(dtype)
            settings["llm_int8_skip_modules"] = self._weights.skip_modules
            files[CONFIG] = {**self._checkpoint.config, "quantization_config": settings}
        return files


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    stem = WEIGHTS.removesuffix(SUFFIX)
    return [f"{stem}-{i:05}-of-{count:05}{SUFFIX}" for i in range(1, count + 1)]
