"""What quantization changes in each weight of a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

from bnbx.checkpoint.convert import make_settings
from bnbx.checkpoint.decode import decode, quantized_weights
from bnbx.checkpoint.finite import check_finite
from bnbx.checkpoint.layers import find_weights
from bnbx.checkpoint.source import Checkpoint
from bnbx.checkpoint.tensor_file import printable
from bnbx.ops import error
from bnbx.progress import Progress
from bnbx.table import readable, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor
    from typing_extensions import Self

#: Values are outliers from this multiple of their weight's root mean square on. Of values with a
#: normal distribution 63 in a million are.
OUTLIER = 4.0
#: Elements that are compared at a time.
PIECE = 1 << 22


@dataclasses.dataclass(frozen=True)
class WeightError:
    """The error of one weight.

    Attributes
    ----------
    name, kind, shape
        Name in the checkpoint; ``"nf4"``, ``"fp4"`` or ``"int8"``; shape as the layer has it.
    bytes
        Of the codes and all that belongs to them.
    relative_error
        Frobenius norm of the change over that of the weight; None without a reference.
    max_error
        Largest change of a value; None without a reference.
    outlier_share
        Share of the values that are larger than ``OUTLIER`` times the root mean square: of the
        reference's, or without one of the decoded weight's.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int
    relative_error: float | None
    max_error: float | None
    outlier_share: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What ``inspect_checkpoint`` found; ``str(inspection)`` is a table.

    Attributes
    ----------
    weights
        The quantized weights, the largest error first; without a reference the largest first.
    bytes_quantized, bytes_others
        Bytes of these weights, and of everything else in the checkpoint.
    """

    weights: tuple[WeightError, ...]
    bytes_quantized: int
    bytes_others: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [("weight", "kind", "shape", "size", "error", "max error", "outliers")]
        for weight in self.weights:
            shape = "x".join(str(size) for size in weight.shape)
            errors = _number(weight.relative_error), _number(weight.max_error)
            share = f"{weight.outlier_share:.4%}"
            name = printable(weight.name)
            rows.append((name, weight.kind, shape, readable(weight.bytes), *errors, share))
        sizes = readable(self.bytes_quantized), readable(self.bytes_others)
        last = f"{len(self.weights)} quantized weights: {sizes[0]}; all other tensors: {sizes[1]}"
        return f"{table(rows, left=2)}\n{last}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def inspect_checkpoint(
    path: Path | str,
    *,
    reference: Path | str | None = None,
    kind: str | None = None,
    double_quant: bool = False,
    blocksize: int = 64,
    scale_search: bool = False,
    layers_from: str = "auto",
    progress: bool = True,
) -> Inspection:
    """Measure the error of each quantized weight of a checkpoint, one weight at a time.

    Parameters
    ----------
    path
        A quantized checkpoint; or one that is not, whose weights are then quantized as
        ``quantize_checkpoint`` would, and nothing is written.
    reference
        The checkpoint from which a quantized one was made. Without it its errors are not known.
    kind
        For a checkpoint that is not quantized: ``"nf4"`` (the default), ``"fp4"`` or ``"int8"``.
    double_quant, blocksize, scale_search
        For one that is not quantized, as for ``quantize_checkpoint``.
    layers_from
        As for ``quantize_checkpoint``; it is asked of the checkpoint that is not quantized.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If an argument is wrong or has no use for such a checkpoint, a checkpoint is malformed, or
        the reference has not the tensors of the other one.
    """
    with Checkpoint(path) as checkpoint:
        if checkpoint.quantized_by():
            given: dict[str, tuple[Any, Any]] = {
                "kind": (kind, None),
                "double_quant": (double_quant, False),
                "blocksize": (blocksize, 64),
                "scale_search": (scale_search, False),
            }
            if reference is None:
                given["layers_from"] = (layers_from, "auto")
            for name, (value, default) in given.items():
                if value != default:
                    what = "the default, because the checkpoint is quantized"
                    raise error(name, what, value)
            return _of_quantized(checkpoint, reference, layers_from, progress=progress)
        if reference is not None:
            expected = "none, because the checkpoint is not quantized"
            raise error("reference", expected, f"{reference}")
        settings = make_settings(kind or "nf4", double_quant, blocksize, scale_search=scale_search)
        return _of_unquantized(checkpoint, settings, layers_from, progress=progress)


def _of_unquantized(
    checkpoint: Checkpoint, settings: Any, layers_from: str, *, progress: bool
) -> Inspection:
    weights = find_weights(checkpoint, (), layers_from)
    errors = []
    total = sum(checkpoint.tensors[name].nbytes for name in weights.transposed)
    with Progress(total, f"as {settings.kind}", "B", show=progress) as bar:
        for name, transposed in weights.transposed.items():
            weight = checkpoint.read(name)
            bar.advance(weight.nbytes, name)
            weight = weight.t().contiguous() if transposed else weight
            entries = settings.encode(name, weight)
            decoded = decode(name, settings.kind, entries)
            errors.append(_compare(name, settings.kind, entries, weight, decoded))
    return _inspection(errors, sum(checkpoint.tensors[name].nbytes for name in weights.kept))


def _of_quantized(
    checkpoint: Checkpoint, reference: Path | str | None, layers_from: str, *, progress: bool
) -> Inspection:
    weights = quantized_weights(checkpoint)
    if not weights:
        got = checkpoint.quantized_by()
        raise error("path", "weights in bitsandbytes' formats", f"none, but {got}")
    errors = []
    sizes = {name: entry.nbytes for name, entry in checkpoint.tensors.items()}
    with _Reference(reference, layers_from) as exact:
        total = sum(sizes[name] for name in weights)
        with Progress(total, "comparing", "B", show=progress) as bar:
            for name, (kind, names) in weights.items():
                entries = {entry: checkpoint.read(entry) for entry in names}
                bar.advance(sizes[name], name)
                decoded = decode(name, kind, entries)
                weight = exact.weight(name, tuple(decoded.shape))
                errors.append(_compare(name, kind, entries, weight, decoded))
    used = {entry for _, names in weights.values() for entry in names}
    return _inspection(errors, sum(size for name, size in sizes.items() if name not in used))


class _Reference:
    """The checkpoint before it was quantized, if there is one; a context manager."""

    def __init__(self, path: Path | str | None, layers_from: str) -> None:
        self._checkpoint = None if path is None else Checkpoint(path)
        self._transposed: dict[str, bool] = {}
        if self._checkpoint is not None:
            with contextlib.ExitStack() as on_failure:
                on_failure.enter_context(self._checkpoint)
                if mark := self._checkpoint.quantized_by():
                    raise error("reference", "a checkpoint that is not quantized", mark)
                self._transposed = find_weights(self._checkpoint, (), layers_from).transposed
                on_failure.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._checkpoint is not None:
            self._checkpoint.__exit__()

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return a weight as its layer has it; None without a reference."""
        if self._checkpoint is None:
            return None
        if name not in self._checkpoint.tensors:
            raise error("reference", f"a tensor {printable(name)}", "none")
        weight = self._checkpoint.read(name)
        weight = weight.t().contiguous() if self._transposed.get(name) else weight
        if tuple(weight.shape) != shape:
            what = f"shape {shape} of {printable(name)}"
            raise error("reference", what, f"shape {tuple(weight.shape)}")
        return weight


def _compare(
    name: str, kind: str, entries: dict[str, Tensor], weight: Tensor | None, decoded: Tensor
) -> WeightError:
    exact = decoded if weight is None else weight
    for tensor in (exact, decoded):
        check_finite(name, tensor)
    change = norm = largest = 0.0
    for values, quantized in _pieces(exact, decoded):
        difference = values - quantized
        change += difference.square().sum(dtype=torch.float64).item()
        norm += values.square().sum(dtype=torch.float64).item()
        largest = max(largest, difference.abs().max().item())
    limit = OUTLIER * math.sqrt(norm / max(1, exact.numel()))
    outliers = sum(int((values.abs() > limit).sum()) for values, _ in _pieces(exact, decoded))
    relative = math.sqrt(change / norm) if norm else math.sqrt(change)
    return WeightError(
        name=name,
        kind=kind,
        shape=tuple(decoded.shape),
        bytes=sum(entry.nbytes for entry in entries.values()),
        relative_error=None if weight is None else relative,
        max_error=None if weight is None else largest,
        outlier_share=outliers / max(1, exact.numel()),
    )


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of two tensors of one shape, flat, in float32."""
    for x, y in zip(a.reshape(-1).split(PIECE), b.reshape(-1).split(PIECE), strict=True):
        yield x.float(), y.float()


def _inspection(errors: list[WeightError], bytes_others: int) -> Inspection:
    errors.sort(
        key=lambda e: e.bytes if e.relative_error is None else e.relative_error, reverse=True
    )
    return Inspection(tuple(errors), sum(error.bytes for error in errors), bytes_others)
