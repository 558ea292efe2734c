"""``bnbx inspect``: the error and the size of each quantized weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnbx.checkpoint import inspect_checkpoint
from bnbx.checkpoint.formats import FORMATS
from bnbx.checkpoint.layers import SOURCES
from bnbx.cli.quantize import add_4bit
from bnbx.ops import error

if TYPE_CHECKING:
    import argparse

HELP = "error and size of each quantized weight of a checkpoint"
PLOTS = (".png", ".svg", ".pdf")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", type=Path, metavar="checkpoint", help="directory or file")
    parser.add_argument(
        "--reference", type=Path, help="what a quantized checkpoint was made from, for its errors"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="for one that is not quantized; default: nf4"
    )
    add_4bit(parser)
    parser.add_argument(
        "--layers-from",
        choices=SOURCES,
        default="auto",
        help="what tells linear layers from others",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw it: {', '.join(PLOTS)}")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Carry the command out and return its report."""
    if options.plot is not None:
        if options.plot.suffix not in PLOTS:
            raise error("--plot", f"a name that ends in one of {PLOTS}", options.plot.name)
        # Not after minutes of work: is matplotlib there?
        from bnbx.checkpoint.plot import save_plot  # noqa: PLC0415
    inspection = inspect_checkpoint(
        options.path,
        reference=options.reference,
        kind=options.format,
        double_quant=options.double_quant,
        blocksize=options.blocksize,
        scale_search=options.scale_search,
        layers_from=options.layers_from,
        progress=not options.no_progress,
    )
    if options.plot is not None:
        save_plot(inspection, options.plot)
    return inspection.as_dict(), str(inspection)
