"""A checkpoint on disk: which files hold its tensors, and what else belongs to it."""

from __future__ import annotations

import collections
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbx.checkpoint.tensor_file import TensorFile, checked_metadata, parse_json, printable
from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


SUFFIX = ".safetensors"
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
#: What is copied: text and tokenizers. Other files, weights in other formats among them, are not.
COPIED_SUFFIXES = frozenset(
    {".json", ".jsonl", ".txt", ".model", ".spm", ".jinja", ".tiktoken", ".py", ".md"}
    | {".yaml", ".yml"}
)
COPIED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
MAX_JSON = 100_000_000
#: Entries of config.json and names of tensors that quantized checkpoints have.
QUANTIZED_MARKS = (".quant_state.", ".weight.absmax", ".SCB", ".qweight", ".weight_scale")


class Checkpoint:
    """A directory as Hugging Face's libraries write it, or one safetensors file; context manager.

    Parameters
    ----------
    path
        A directory with model.safetensors, or with shards and model.safetensors.index.json; or a
        safetensors file, which is then all there is.

    Attributes
    ----------
    config
        What config.json says; nothing for a single file or without one.
    tensors
        The entries of all tensors by name, file after file.
    files
        The open files by name.
    metadata
        What the headers say beside tensors, as far as the files agree.
    metadata_in_conflict
        Names of what they do not agree on: it is about one file, and not about the checkpoint.

    Raises
    ------
    ValueError
        If there are no safetensors, a file is malformed, index and shards do not agree, a tensor is
        in two files, or a name or link leads out of the directory.
    OSError
        If a file cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise error("src", "a directory or a safetensors file", f"nothing at {self.path}")
        self.is_file = self.path.is_file()
        self.root = self.path.parent if self.is_file else self.path
        self.config: dict[str, Any] = {}
        if not self.is_file and os.path.lexists(self.root / CONFIG):
            self.config = self._json(CONFIG)
        self._weight_map: dict[str, str] = {}
        self._close = contextlib.ExitStack()
        with self._close:  # closes what is open if a later file is refused
            self.files = {
                name: self._close.enter_context(TensorFile(self.resolved(name)))
                for name in self._weight_files()
            }
            self._where: dict[str, TensorFile] = {}
            for file in self.files.values():
                for name in file.tensors:
                    if name in self._where:
                        files = f"{self._where[name].path.name} and {file.path.name}"
                        raise error(f"tensor {printable(name)}", "one", f"two, in {files}")
                    self._where[name] = file
            self._check_index()
            self.tensors = {name: file.tensors[name] for name, file in self._where.items()}
            self.metadata, self.metadata_in_conflict = self._merged_metadata()
            self._close = self._close.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def file_of(self, name: str) -> TensorFile:
        """Return the open file that a tensor is in."""
        return self._where[name]

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._where[name].read(name)

    def quantized_by(self) -> str:
        """Return what shows that it is quantized already; nothing if it is not."""
        method = self.config.get("quantization_config")
        if method is not None:
            kind = method.get("quant_method", "?") if isinstance(method, dict) else "?"
            return f"quantization_config in {CONFIG} ({kind!r})"
        for name in self._where:
            # With a dot: the name of a tensor of one bare layer begins with the mark.
            if any(mark in f".{name}" for mark in QUANTIZED_MARKS):
                return f"the tensor {printable(name)}"
        return ""

    def other_files(self) -> tuple[list[str], list[str]]:
        """Return the names of the files to copy, and of everything else but the weights.

        Raises
        ------
        ValueError
            If one to copy is a link that leads out of the directory, or not a regular file.
        """
        if self.is_file:
            return [], []
        copied, left = [], []
        for path in sorted(self.root.iterdir()):
            if path.name in {CONFIG, INDEX} or path.name in self.files:
                continue
            is_text = path.suffix in COPIED_SUFFIXES or (
                path.name.startswith(COPIED_NAMES) and path.suffix not in PICKLES
            )
            is_index = path.name.endswith(".index.json")
            if path.is_dir() or path.name.startswith(".") or not is_text or is_index:
                left.append(path.name)
                continue
            self.resolved(path.name)
            copied.append(path.name)
        return copied, left

    def resolved(self, name: str) -> Path:
        """Return the real path of a file of the directory.

        A link may lead to a file of the same directory, or, in the cache of huggingface_hub, to one
        of the blobs of the same repository: a link to anywhere else would publish a private file.
        """
        if self.is_file:
            return self.path
        if name in {"", ".", ".."} or "/" in name or "\\" in name or "\0" in name:
            raise error(f"{self.root}", "files in that directory", printable(name))
        # Unlike Path.resolve, it goes through a link to itself.
        path = Path(os.path.realpath(self.root / name))
        root = Path(os.path.realpath(self.root))
        allowed = [root]
        if root.parent.name == "snapshots":
            allowed.append(root.parent.parent / "blobs")
        if path.parent not in allowed:
            hint = "Put a copy of the file in its place."
            raise error(f"{self.root / name}", "a link within the directory", path, hint)
        if not path.is_file():
            got = "something else" if path.exists() else "nothing"
            raise error(f"{self.root / name}", "a regular file", got)
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self.resolved(name)
        if path.stat().st_size > MAX_JSON:
            raise error(f"{self.root / name}", f"at most {MAX_JSON} bytes", path.stat().st_size)
        return parse_json(path.read_bytes(), f"{self.root / name}")

    def _weight_files(self) -> list[str]:
        if self.is_file:
            if self.path.suffix != SUFFIX:
                raise _not_safetensors(self.path, self.path.suffix in PICKLES)
            return [self.path.name]
        # transformers reads one file or the other, and any that config.json names.
        one, many = (self.root / WEIGHTS).exists(), (self.root / INDEX).exists()
        if one and many:
            hint = "Remove the one that is stale."
            raise error(f"{self.root}", f"{WEIGHTS} or {INDEX}", "both", hint)
        named = self.config.get("transformers_weights")
        if named not in {None, WEIGHTS, INDEX}:
            raise error("config.json: transformers_weights", f"{WEIGHTS} or {INDEX}", repr(named))
        if one:
            return [WEIGHTS]
        if many:
            return self._indexed_files()
        found = sorted(path.name for path in self.root.iterdir() if path.suffix == SUFFIX)
        if found:
            raise error(f"{self.root}", f"{WEIGHTS}, or shards and {INDEX}", f"only {found}")
        pickled = any(path.suffix in PICKLES for path in self.root.iterdir())
        raise _not_safetensors(self.root, pickled)

    def _indexed_files(self) -> list[str]:
        weight_map = self._json(INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise error(f"{self.root / INDEX}", "a weight_map", type(weight_map).__name__)
        for file in weight_map.values():
            if not isinstance(file, str) or not file.endswith(SUFFIX):
                raise error(f"{self.root / INDEX}", f"names of {SUFFIX} files", repr(file)[:80])
        self._weight_map = weight_map
        return sorted(set(weight_map.values()))

    def _merged_metadata(self) -> tuple[dict[str, str], tuple[str, ...]]:
        entries = {entry for file in self.files.values() for entry in file.metadata.items()}
        counts = collections.Counter(key for key, _ in entries)
        merged = {key: text for key, text in sorted(entries) if counts[key] == 1}
        conflicts = tuple(sorted(key for key, count in counts.items() if count > 1))
        return checked_metadata(merged, f"{self.root}"), conflicts

    def _check_index(self) -> None:
        for name, file in self._weight_map.items():
            if name not in self.files[file].tensors:
                got = f"no tensor {printable(name)}, which {INDEX} says is there"
                raise error(f"{self.root / file}", "what the index says", got)
        for name in self._where if self._weight_map else ():
            if name not in self._weight_map:
                raise error(f"{self.root / INDEX}", "every tensor", f"not {printable(name)}")


def _not_safetensors(path: Path, is_pickle: bool) -> ValueError:
    got = "a pickle, which can run code when it is loaded" if is_pickle else "none"
    hint = "Convert it first: load it where you trust it and save it with save_pretrained."
    return error(f"{path}", "safetensors", got, hint if is_pickle else "")
