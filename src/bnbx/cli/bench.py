"""``bnbx bench``: the main operations beside dense PyTorch, and bitsandbytes if it is there.

A quick look at one machine. The repository's ``benchmarks/side_by_side`` has every operation, more
libraries and the limits of the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import logging
import math
import statistics
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import bnbx
from bnbx.cli.arguments import dtype, positive
from bnbx.ops import FLOAT_DTYPES, error
from bnbx.progress import Progress
from bnbx.table import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from types import ModuleType

    #: Calls that do the same on equal data in different memory.
    Calls = Sequence[Callable[[], object]]

HELP = "the main operations beside dense PyTorch, and bitsandbytes if it is installed"
OURS, DENSE, PEER = "bnbx", "torch", "bitsandbytes"
#: Bytes of the copies of one side's weight: in a model, too, a weight comes from memory.
ROTATION = 1 << 27
#: Seconds of one sample, and samples of each side, of which the median counts.
SAMPLE, ROUNDS = 0.05, 7
ROWS = (1, 8, 64, 512)


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes
    ----------
    name
        What is done.
    sides
        Who does it -> a function that prepares and returns the calls.
    """

    name: str
    sides: dict[str, Callable[[], Calls]]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--size", type=positive, default=4096, help="rows and columns of the weight; default: 4096"
    )
    parser.add_argument(
        "--dtype",
        type=dtype,
        default="bfloat16",
        help="of weight and activations; default: bfloat16",
    )
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=positive, help="of the CPU; default: torch's")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="lines whose name has this in it",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Carry the command out and return its report."""
    if options.dtype not in FLOAT_DTYPES:
        raise error("--dtype", f"one of {FLOAT_DTYPES}", options.dtype)
    threads = options.threads or torch.get_num_threads()
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as failure:
        raise error("--device", "a device of this torch", options.device) from failure
    every = cases(options.size, options.dtype, torch.device(options.device))
    chosen = [c for c in every if all(text in c.name for text in options.only)]
    if not chosen:
        raise error("--only", f"text in one of {[case.name for case in every]}", options.only)
    results = {}
    with Progress(len(chosen), "timing", "line", show=not options.no_progress) as bar:
        for case in chosen:
            results[case.name] = timed(case, threads)
            bar.advance(1, case.name)
    report = {
        "size": options.size,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": options.device,
        "threads": threads,
        "seconds": results,
    }
    return report, render(report)


def render(report: dict[str, Any]) -> str:
    """Return the report as text for a terminal."""
    results = report["seconds"]
    peers = [side for side in (DENSE, PEER) if any(side in times for times in results.values())]
    rows = [("", f"{OURS} ms", *(text for p in peers for text in (f"{p} ms", f"{p} / {OURS}")))]
    for name, times in results.items():
        cells = [name, f"{1e3 * times[OURS]:.3f}"]
        for peer in peers:
            known = peer in times
            cells.append(f"{1e3 * times[peer]:.3f}" if known else "-")
            cells.append(f"{times[peer] / times[OURS]:.2f}" if known else "-")
        rows.append(tuple(cells))
    size = report["size"]
    title = (
        f"weight {size} x {size}, {report['dtype']}, {report['device']}, "
        f"{report['threads']} threads; a ratio above 1: {OURS} is faster"
    )
    return f"{title}\n{table(rows, left=1)}"


def timed(case: Case, threads: int) -> dict[str, float]:
    """Return the seconds of a call of each side, the median of samples taken in turn.

    What else runs on the machine then slows all sides alike, and the ratios hold.
    """
    timers, counts = {}, {}
    for side, prepare in case.sides.items():
        turn = itertools.cycle(prepare())
        call = functools.partial(_call_next, turn)
        timers[side] = Timer("call()", globals={"call": call}, num_threads=threads)
        once = timers[side].timeit(2).mean  # the first calls may allocate or compile
        counts[side] = max(1, math.ceil(SAMPLE / max(once, 1e-7)))
    samples: dict[str, list[float]] = {side: [] for side in timers}
    for _ in range(ROUNDS):
        for side, timer in timers.items():
            samples[side].append(timer.timeit(counts[side]).mean)
    return {side: statistics.median(seconds) for side, seconds in samples.items()}


def _call_next(turn: Any) -> None:
    next(turn)()


def bitsandbytes() -> ModuleType | None:
    """Return the library if it is installed, and is not bnbx under that name."""
    if importlib.util.find_spec(PEER) is None:
        return None
    logging.getLogger(PEER).setLevel(logging.CRITICAL)  # it says at each call what it casts
    module = importlib.import_module(PEER)
    return None if module.nn.Linear4bit is bnbx.nn.Linear4bit else module


def cases(size: int, of: torch.dtype, device: torch.device) -> list[Case]:
    """Return the lines of the table; nothing is prepared yet.

    Parameters
    ----------
    size
        Rows and columns of the weight.
    of
        Its dtype and that of the activations.
    device
        Where.
    """
    libraries = {OURS: bnbx, PEER: bitsandbytes()}
    there = {name: library for name, library in libraries.items() if library is not None}
    weight = torch.randn(size, size, dtype=of, device=device)

    def conversions(make: Callable[[ModuleType], Calls]) -> dict[str, Callable[[], Calls]]:
        copies = [weight.clone() for _ in range(_copies(weight))]
        dense = {DENSE: lambda: [functools.partial(torch.clone, copy) for copy in copies]}
        return {**{n: functools.partial(make, lib) for n, lib in there.items()}, **dense}

    def products(make: Callable[[ModuleType, Tensor], nn.Module], rows: int) -> Any:
        x = torch.randn(rows, size, dtype=of, device=device)
        sides = {n: functools.partial(_layers, make, lib, weight, x) for n, lib in there.items()}
        return {**sides, DENSE: functools.partial(_layers, _dense, torch, weight, x)}

    lines = [
        Case("quantize nf4 (torch: copy)", conversions(functools.partial(_quantize, weight))),
        Case("dequantize nf4 (torch: copy)", conversions(functools.partial(_decode, weight))),
        *(Case(f"Linear4bit nf4, {m} rows", products(_linear4bit, m)) for m in ROWS),
        *(Case(f"Linear8bitLt, {m} rows", products(_linear8bit, m)) for m in ROWS),
    ]
    sides = {n: functools.partial(_step, lib.optim.AdamW8bit, weight) for n, lib in there.items()}
    fused = functools.partial(torch.optim.AdamW, fused=True)
    lines.append(Case("AdamW8bit step", {**sides, DENSE: functools.partial(_step, fused, weight)}))
    return lines


def _copies(weight: Tensor) -> int:
    return max(1, ROTATION // weight.nbytes)


def _quantize(weight: Tensor, library: ModuleType) -> Calls:
    quantize = functools.partial(library.functional.quantize_4bit, quant_type="nf4")
    return [functools.partial(quantize, weight.clone()) for _ in range(_copies(weight))]


def _decode(weight: Tensor, library: ModuleType) -> Calls:
    quantized = library.functional.quantize_4bit(weight, quant_type="nf4")
    count = max(1, ROTATION // quantized[0].nbytes)
    return [
        functools.partial(library.functional.dequantize_4bit, quantized[0].clone(), quantized[1])
        for _ in range(count)
    ]


def _layers(
    make: Callable[[Any, Tensor], nn.Module], library: Any, weight: Tensor, x: Tensor
) -> Calls:
    first = make(library, weight).eval()
    layers = [first]
    count = max(1, ROTATION // first.get_parameter("weight").nbytes)
    layers += [make(library, weight).eval() for _ in range(count - 1)]
    return [torch.no_grad()(functools.partial(layer, x)) for layer in layers]


def _dense(_: Any, weight: Tensor) -> nn.Module:
    N, K = weight.shape
    layer = nn.Linear(K, N, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return layer


def _linear4bit(library: Any, weight: Tensor) -> nn.Module:
    make = library.nn.LinearNF4
    layer: nn.Module = make(*weight.t().shape, False, weight.dtype, False, device="meta")
    packed, state = bnbx.functional.quantize_4bit(
        weight, quant_type="nf4"
    )  # the format is the same
    layer.weight = library.nn.Params4bit.from_prequantized(
        packed, state.as_dict(packed=True), device=weight.device, module=layer
    )
    return layer


def _linear8bit(library: Any, weight: Tensor) -> nn.Module:
    options = {"bias": False, "has_fp16_weights": False, "threshold": 6.0, "device": "meta"}
    layer: nn.Module = library.nn.Linear8bitLt(*weight.t().shape, **options)
    layer.weight = library.nn.Int8Params(
        weight.clone(), has_fp16_weights=False, requires_grad=False
    )
    return layer.to(weight.device)


def _step(optimizer: Callable[[list[nn.Parameter]], Any], weight: Tensor) -> Calls:
    parameter = nn.Parameter(weight.float())
    parameter.grad = torch.randn_like(parameter)
    return [optimizer([parameter]).step]
