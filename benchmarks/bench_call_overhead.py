"""Where the time of a small call goes: one row of activations times a 64 x 64 weight.

``python benchmarks/bench_call_overhead.py`` prints what each level of a call adds, in microseconds
of CPU time on one thread. Under pytest it times the layers alone, as the other benchmarks do.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

import bnbx
from bnbx.backends.native import NativeBackend
from bnbx.functional.four_bit import kernel_scales
from bnbx.ops import CONTRACTS
from common import normal, set_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SIZE = 64
#: Class, whether it is bitsandbytes', and settings.
LAYERS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "Linear4bit": ("LinearNF4", False, {"compress_statistics": False}),
    "Linear4bit, nested": ("LinearNF4", False, {}),
    "Linear8bitLt": ("Linear8bitLt", False, {"has_fp16_weights": False}),
    "Linear8bitLt, threshold 6": (
        "Linear8bitLt",
        False,
        {"has_fp16_weights": False, "threshold": 6.0},
    ),
    "bitsandbytes Linear4bit, nested": ("LinearNF4", True, {}),
    "bitsandbytes Linear8bitLt, threshold 6": (
        "Linear8bitLt",
        True,
        {"has_fp16_weights": False, "threshold": 6.0},
    ),
}
LEVELS = {
    "module": "torch.nn.Module.__call__",
    "layer": "forward",
    "functional": "from the layer to the operation: autograd, QuantState",
    "dispatcher": "torch's, both ways, and the frame around contract and kernel",
    "contract": "checks, and the allocation of the output",
    "native": "tensors to pointers",
    "binding": "Python integers to C",
    "kernel": "the work",
}


def make(name: str, dtype: torch.dtype) -> torch.nn.Module:
    """Return a layer for evaluation."""
    if name == "torch.nn.Linear":
        return torch.nn.Linear(SIZE, SIZE, dtype=dtype).eval()
    cls, peer, settings = LAYERS[name]
    module = importlib.import_module("bitsandbytes.nn") if peer else bnbx.nn
    return getattr(module, cls)(SIZE, SIZE, **settings).to("cpu").to(dtype).eval()


class Recorder:
    """Stands for an ``_ext`` module and keeps what its functions are called with."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def record(*args: Any) -> None:
            self.call = name, args

        return record


def operation(layer: torch.nn.Module, x: Tensor) -> tuple[str, tuple[Any, ...], Callable]:
    """Return the operation that a layer calls, its arguments, and the function that calls it."""
    bias = layer.bias.detach()
    if isinstance(layer, bnbx.nn.Linear8bitLt):
        state = layer.state
        args = (x, state.CB, state.SCB, state.threshold, bias)
        return "int8_linear", args, lambda: bnbx.matmul(x, None, None, state, 0.0, bias)
    packed, state = layer.weight.plain(), layer.weight.quant_state
    scales, *nested = kernel_scales(state)
    args = (x, packed, [*state.shape], scales, state.blocksize, state.quant_type, bias, *nested)
    return "gemm_4bit", args, lambda: bnbx.matmul_4bit(x, packed, state, None, bias)


def calls(layer: torch.nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """Return calls that enter a layer at each level; each does everything below it as well."""
    name, args, function = operation(layer, x)
    ext, recorder = importlib.import_module("bnbx._ext._cpu"), Recorder()
    contract, native = CONTRACTS[name], getattr(NativeBackend(ext, lambda _: 0), name)
    overload = getattr(torch.ops.bnbx, name).default
    out = contract(*args)
    getattr(NativeBackend(recorder, lambda _: 0), name)(out, *args)
    bound, integers = getattr(ext, name), [*recorder.call[1]]
    scratch = torch.empty(3, 4 * SIZE)
    if name == "int8_linear":  # the codes, stats and mask of the recorded call are gone
        integers[10:13] = [row.data_ptr() for row in scratch]
    nothing = [*integers[:2], 0, 0, 0, *integers[5:]]  # M, N and K
    return {
        "module": lambda: layer(x),
        "layer": lambda: layer.forward(x),
        "functional": function,
        "dispatcher": lambda: overload(*args),
        "contract": lambda: contract(*args),
        "native": lambda: native(out, *args),
        "binding": lambda _=scratch: bound(*integers),
        "kernel": lambda: bound(*nothing),
    }


def fastest(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time the functions in turn and return the least time of each, in microseconds."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.thread_time()
            for _ in range(200):
                function()
            best[name] = min(best[name], (time.thread_time() - start) / 200 * 1e6)
    return best


def levels(layer: torch.nn.Module, x: Tensor, rounds: int) -> dict[str, float]:
    """Return what each level adds to the one below it."""
    t = fastest(calls(layer, x), rounds)
    return {
        "module": t["module"] - t["layer"],
        "layer": t["layer"] - t["functional"],
        "functional": t["functional"] - t["dispatcher"],
        "dispatcher": t["dispatcher"] - t["contract"] - t["native"],
        "contract": t["contract"],
        "native": t["native"] - t["binding"],
        "binding": t["kernel"],
        "kernel": t["binding"] - t["kernel"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="the least of so many samples")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    logging.disable()  # bitsandbytes writes a line per call
    set_threads(1)
    dtype = getattr(torch, options.dtype)
    x = normal(1, SIZE, dtype=dtype)
    layers = {name: make(name, dtype) for name in ("torch.nn.Linear", *LAYERS)}
    run = {name: lambda layer=layer: layer(x) for name, layer in layers.items()}
    with torch.no_grad():
        plain = fastest(run, options.rounds)
        columns = {
            n: levels(layers[n], x, options.rounds)
            for n, (_, peer, _) in LAYERS.items()
            if not peer
        }
    graph = fastest(run, options.rounds)
    print(f"| us, {options.dtype} | no_grad | | with gradients of the bias | |\n|" + " --- |" * 5)
    for name in layers:
        cells = (f"{t[name]:.1f} | {t[name] / t['torch.nn.Linear']:.2f}x" for t in (plain, graph))
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n| level | {' | '.join(columns)} | |\n|" + " --- |" * (len(columns) + 2))
    for level, what in LEVELS.items():
        print(f"| {level} | {' | '.join(f'{c[level]:.1f}' for c in columns.values())} | {what} |")


@pytest.mark.parametrize("name", ["torch.nn.Linear", *LAYERS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def bench_call_overhead(benchmark, dtype, name):
    layer, x = make(name, dtype), normal(1, SIZE, dtype=dtype)
    with torch.no_grad():
        benchmark(layer, x)


if __name__ == "__main__":
    main()
