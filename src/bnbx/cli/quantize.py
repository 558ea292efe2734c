"""``bnbx quantize``: a checkpoint into one that transformers loads as quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbx.checkpoint import quantize_checkpoint
from bnbx.checkpoint.calibration import DEFAULT_TOKENS
from bnbx.checkpoint.convert import DEFAULT_SHARD_SIZE
from bnbx.checkpoint.formats import FORMATS
from bnbx.checkpoint.layers import SOURCES
from bnbx.cli.arguments import dtype, positive, size
from bnbx.ops import BLOCKSIZES_4BIT
from bnbx.quantize.calibration import METHODS
from bnbx.quantize.random_tokens import RANDOM

if TYPE_CHECKING:
    import argparse

HELP = "quantize a safetensors checkpoint, one tensor at a time"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("src", type=Path, help="directory of a model, or a .safetensors file")
    parser.add_argument("dst", type=Path, help="where to put it; must not exist")
    parser.add_argument("--format", choices=FORMATS, default="nf4", help="default: nf4")
    add_4bit(parser)
    add_calibration(parser)
    parser.add_argument(
        "--compute-dtype", type=dtype, help="4-bit: what readers compute in; default: the weights'"
    )
    parser.add_argument(
        "--storage-dtype", type=dtype, default="uint8", help="4-bit: what holds the codes"
    )
    parser.add_argument(
        "--threshold", type=float, default=6.0, help="int8: outliers begin here; default: 6"
    )
    parser.add_argument(
        "--skip", nargs="+", action="extend", default=[], metavar="PATTERN", help="layers to leave"
    )
    parser.add_argument(
        "--layers-from",
        choices=SOURCES,
        default="auto",
        help="what tells linear layers from others",
    )
    parser.add_argument(
        "--max-shard-size",
        type=size,
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help="of a file, as 5GB or 500MB; default: 5GB",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def add_4bit(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say how a 4-bit format is used."""
    parser.add_argument(
        "--double-quant", action="store_true", help="4-bit: quantize the scales too"
    )
    parser.add_argument(
        "--blocksize", type=int, choices=BLOCKSIZES_4BIT, default=64, help="4-bit; default: 64"
    )
    parser.add_argument(
        "--scale-search",
        action="store_true",
        help="4-bit: look for the scale of each block with the smallest error",
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say what the model reads while it is quantized."""
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="4-bit: UTF-8 text that the model, which is loaded, reads while it is quantized; "
        f"or {RANDOM!r}, for tokens drawn at random (a file of that name: ./{RANDOM})",
    )
    parser.add_argument(
        "--calibration-method",
        choices=METHODS,
        help=f"default: gptq, with {RANDOM!r} imatrix",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=positive,
        metavar="N",
        help=f"of the text that are read; default: {DEFAULT_TOKENS}",
    )


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Carry the command out and return its report."""
    report = quantize_checkpoint(
        options.src,
        options.dst,
        options.format,
        skip=options.skip,
        double_quant=options.double_quant,
        blocksize=options.blocksize,
        compute_dtype=options.compute_dtype,
        storage_dtype=options.storage_dtype,
        threshold=options.threshold,
        scale_search=options.scale_search,
        calibration=options.calibrate,
        calibration_method=options.calibration_method,
        calibration_tokens=options.calibration_tokens,
        max_shard_size=options.max_shard_size,
        layers_from=options.layers_from,
        progress=not options.no_progress,
    )
    return report.as_dict(), str(report)
