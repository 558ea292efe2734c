"""A checkpoint to a quantized one, tensor by tensor, without a model in memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bnbx.checkpoint.calibration import Calibration
from bnbx.checkpoint.formats import FORMATS, Settings4bit, Settings8bit
from bnbx.checkpoint.job import Job
from bnbx.checkpoint.layers import find_weights
from bnbx.checkpoint.output import check_new, check_space, staged
from bnbx.checkpoint.report import CheckpointReport
from bnbx.checkpoint.source import SUFFIX, Checkpoint
from bnbx.ops import QUANT_TYPES_4BIT, error
from bnbx.quantize.random_tokens import RANDOM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnbx.checkpoint.formats import Settings

DEFAULT_SHARD_SIZE = 5_000_000_000


def quantize_checkpoint(
    src: Path | str,
    dst: Path | str,
    kind: str = "nf4",
    *,
    skip: Sequence[str] = (),
    double_quant: bool = False,
    blocksize: int = 64,
    compute_dtype: torch.dtype | None = None,
    storage_dtype: torch.dtype = torch.uint8,
    threshold: float = 6.0,
    scale_search: bool = False,
    calibration: Path | str | None = None,
    calibration_method: str | None = None,
    calibration_tokens: int | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    layers_from: str = "auto",
    progress: bool = True,
) -> CheckpointReport:
    """Quantize the linear layers of a checkpoint into one that transformers loads as quantized.

    One tensor at a time is in memory, unless there is a calibration, which takes the whole model.
    ``dst`` appears when it is complete and on the disk, and not at all if anything fails or the
    process is killed; then a directory ``.<name>.bnbx-*`` may stay behind beside it.

    Parameters
    ----------
    src
        A directory with config.json and model.safetensors, or shards and their index; or a
        safetensors file. Pickles are refused.
    dst
        Where there is nothing yet: of the same sort, a directory or a file.
    kind
        ``"nf4"``, ``"fp4"`` or ``"int8"``.
    skip
        Layers to leave: names of layers or of modules that contain them, ends of names after a dot,
        or patterns as in ``fnmatch``. Output layers and tied weights stay in any case.
    double_quant, blocksize, storage_dtype
        4-bit only: as ``compress_statistics``, ``blocksize`` and ``quant_storage`` of
        ``quantize_4bit``.
    compute_dtype
        4-bit only: what readers of the result are told to compute in; by default the weights'
        dtype.
    threshold
        int8 only: what magnitude of activations is an outlier, for readers of the result.
    scale_search
        4-bit only: as for ``quantize_4bit``. With ``calibration`` it always happens.
    calibration
        4-bit only: a UTF-8 file with text like that which the model will see. The model is loaded,
        with its tokenizer, and reads the begin of it; see ``quantize_``. ``"random"`` needs no text
        and no tokenizer: token ids drawn at random.
    calibration_method
        As for ``quantize_``.
    calibration_tokens
        How many tokens of the text are read; by default 16,384.
    max_shard_size
        Bytes of tensors in a file, unless a single layer needs more.
    layers_from
        What says which tensors are weights of linear layers: ``"model"`` (of transformers),
        ``"names"``, or ``"auto"``, the model where there is one. See ``find_weights``.
    progress
        Whether to show a progress bar, if tqdm is installed and standard error is a terminal.

    Returns
    -------
    CheckpointReport
        Tensor by tensor, what was done.

    Raises
    ------
    ValueError
        If an argument is wrong, ``dst`` exists, the disk is too small, or the source is no
        safetensors, malformed, quantized already, without a layer to quantize, or holds a NaN or an
        infinity.
    OSError
        If a file cannot be read or written.
    ImportError
        If ``layers_from="model"`` or there is a calibration, and transformers is not installed.
    """
    start = time.perf_counter()
    settings = make_settings(
        kind, double_quant, blocksize, compute_dtype, storage_dtype, threshold, scale_search
    )
    text = _calibration(settings, calibration, calibration_method, calibration_tokens)
    if max_shard_size <= 0:
        raise error("max_shard_size", "a positive number of bytes", max_shard_size)
    dst = Path(dst).absolute()
    check_new(dst)
    with Checkpoint(src) as checkpoint:
        if mark := checkpoint.quantized_by():
            raise error("src", "a checkpoint that is not quantized", mark)
        if checkpoint.is_file and dst.suffix != SUFFIX:
            raise error("dst", f"a name that ends in {SUFFIX}, because src is a file", dst.name)
        weights = find_weights(checkpoint, skip, layers_from)
        if not weights.transposed:
            reasons = sorted(set(weights.kept.values()))
            raise error("src", "at least one linear layer to quantize", f"none: {reasons}")
        useless: dict[str, tuple[Any, Any]] = {}
        if checkpoint.is_file:
            useless["max_shard_size"] = (max_shard_size, DEFAULT_SHARD_SIZE)
        if not checkpoint.config:
            useless |= {"compute_dtype": (compute_dtype, None), "threshold": (threshold, 6.0)}
        for name, (value, default) in useless.items():
            if value != default:
                raise error(name, "the default, because the result has no place for it", value)
        size = sys.maxsize if checkpoint.is_file else max_shard_size
        job = Job(checkpoint, weights, settings, size)
        copied, left_out = checkpoint.other_files()
        sizes = (checkpoint.resolved(name).stat().st_size for name in copied)
        check_space(dst.parent, job.size() + sum(sizes))
        if text is not None:
            job.use(text.encoded(checkpoint, weights, progress=progress))
        with staged(dst, as_file=checkpoint.is_file) as stage:
            file = dst.name if checkpoint.is_file else None
            written = job.write(stage, file, progress=progress)
            job.copy(stage, copied)
        return CheckpointReport(
            tensors=tuple(job.reports()),
            layers_from=weights.source,
            files=(*written, *copied),
            left_out=tuple(left_out),
            metadata_left_out=checkpoint.metadata_in_conflict,
            unused_skips=weights.unused_skips,
            seconds=time.perf_counter() - start,
        )


def make_settings(
    kind: str,
    double_quant: bool = False,
    blocksize: int = 64,
    compute_dtype: torch.dtype | None = None,
    storage_dtype: torch.dtype = torch.uint8,
    threshold: float = 6.0,
    scale_search: bool = False,
) -> Settings:
    """Return the settings of a format; see ``quantize_checkpoint``.

    Raises
    ------
    ValueError
        If one is wrong, or set though the format has no use for it.
    """
    if kind not in FORMATS:
        raise error("kind", f"one of {FORMATS}", repr(kind))
    settings_4bit = {
        "double_quant": (double_quant, False),
        "blocksize": (blocksize, 64),
        "compute_dtype": (compute_dtype, None),
        "storage_dtype": (storage_dtype, torch.uint8),
        "scale_search": (scale_search, False),
    }
    is_4bit = kind in QUANT_TYPES_4BIT
    useless = {"threshold": (threshold, 6.0)} if is_4bit else settings_4bit
    for name, (value, default) in useless.items():
        if value != default:
            raise error(name, f"the default, because {kind!r} has no use for it", value)
    if is_4bit:
        return Settings4bit(
            kind, double_quant, blocksize, compute_dtype, storage_dtype, scale_search
        )
    return Settings8bit(threshold)


def _calibration(
    settings: Settings, source: Path | str | None, method: str | None, tokens: int | None
) -> Calibration | None:
    if source is None:
        for name, value in (("calibration_method", method), ("calibration_tokens", tokens)):
            if value is not None:
                raise error(name, "the default, because there is no calibration", value)
        return None
    if isinstance(settings, Settings8bit):
        expected = f"None, because {settings.kind!r} has no use for it"
        raise error("calibration", expected, f"{source}")
    text = None if source == RANDOM else Path(source)
    return Calibration(text, settings, method, tokens)
