"""What is timed on a GPU: the operations with a bar, on the shapes of Llama-3 8B and 70B."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import bnbx
from gpu.timing import Call
from side_by_side.libraries import bitsandbytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    Make = Callable[[], Call]

DENSE = "torch bf16"
FUSED = "torch AdamW fused"
#: (N, K) of the linear layers, with the projections of one input as one weight.
SHAPES = {
    "8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "70B": ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)),
}
ROWS = (1, 4, 16, 64, 128, 512, 2048)
#: Bytes that the copies of an operand take together: several times the largest cache.
ROTATION = 2**28


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation and those who can do it.

    Attributes
    ----------
    name, labels
        Unique, and what the bars need to know.
    moved
        Bytes that have to be read and written, each once; 0 where no bar asks.
    sides
        Side -> function that prepares its data and returns what to time.
    """

    name: str
    labels: dict[str, Any]
    moved: int
    sides: dict[str, Make]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the cases are, and where they run."""

    device: torch.device
    elements: int = 2**28
    shapes: Sequence[tuple[int, int]] = (*SHAPES["8B"], *SHAPES["70B"])
    rows: Sequence[int] = ROWS
    parameters: Sequence[tuple[int, int]] = ((1, 100_000_000), (300, 50_000))
    rotation: int = ROTATION

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Return fresh normally distributed values; zeros would be faster than data."""
        return torch.randn(shape, device=self.device, dtype=dtype)

    def copies(self, nbytes: int) -> range:
        """Return as many numbers as operands of this size exceed the caches."""
        return range(min(64, math.ceil(self.rotation / max(nbytes, 1))))


def small(device: torch.device) -> Sizes:
    """Return sizes that show in a minute that everything runs, on any device."""
    tiny = ((1, 5000), (4, 1000))
    return Sizes(device, 2**14, ((128, 256),), (1, 16, 128, 512), tiny, 2**14)


def copy(sizes: Sizes) -> Case:
    """Return the copy of a buffer, which measures the bandwidth."""
    count = sizes.elements

    def make() -> Call:
        source, target = sizes.normal(count), sizes.normal(count)
        return Call([lambda: target.copy_(source)])

    return Case("copy", {"operation": "copy"}, 4 * count, {"torch": make})


def all_cases(sizes: Sizes, libraries: dict[str, ModuleType]) -> Iterator[Case]:
    """Yield every case but the copy."""
    yield from _codes(sizes, libraries)
    for N, K in sizes.shapes:
        for M in sizes.rows:
            yield _linear4bit(sizes, libraries, M, N, K)
        yield _gradient(sizes, libraries, max(sizes.rows), N, K)
        for M in (row for row in sizes.rows if row >= 512):
            for threshold in (0.0, 6.0):
                yield _linear8bit(sizes, libraries, M, N, K, threshold)
    for count, numel in sizes.parameters:
        yield _step(sizes, libraries, count, numel)


def _sides(
    libraries: dict[str, ModuleType], make: Callable[[ModuleType], Call], **others: Make
) -> dict[str, Make]:
    named = {name.replace("_", " "): side for name, side in others.items()}
    return {**{name: functools.partial(make, lib) for name, lib in libraries.items()}, **named}


def _codes(sizes: Sizes, libraries: dict[str, ModuleType]) -> Iterator[Case]:
    n = sizes.elements
    formats = {
        "4bit": (n // 2 + 4 * n // 64, {"blocksize": 64, "quant_type": "nf4"}),
        "blockwise": (n + 4 * n // 4096, {"blocksize": 4096}),
    }
    for suffix, (coded, options) in formats.items():

        def quantize(library: ModuleType, suffix: str = suffix, options: Any = options) -> Call:
            function = getattr(library.functional, f"quantize_{suffix}")
            return Call([functools.partial(function, sizes.normal(n), **options)])

        def decode(library: ModuleType, suffix: str = suffix, options: Any = options) -> Call:
            codes, state = getattr(library.functional, f"quantize_{suffix}")(
                sizes.normal(n), **options
            )
            function = getattr(library.functional, f"dequantize_{suffix}")
            return Call([functools.partial(function, codes, state)])

        for verb, make in (("quantize", quantize), ("dequantize", decode)):
            name = f"{verb}_{suffix}"
            labels = {"operation": name, "n": n}
            yield Case(name, labels, 2 * n + coded, _sides(libraries, make))


def _calls(sizes: Sizes, layer: Callable[[], nn.Module], nbytes: int, x: torch.Tensor) -> Call:
    layers = [layer() for _ in sizes.copies(nbytes)]
    return Call([functools.partial(_forward, layer, x) for layer in layers])


@torch.no_grad()
def _forward(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x)


def _dense(sizes: Sizes, N: int, K: int) -> nn.Module:
    layer = nn.Linear(K, N, bias=False, device="meta")
    layer.weight = nn.Parameter(sizes.normal(N, K), requires_grad=False)
    return layer


def _four_bit(sizes: Sizes, library: ModuleType, N: int, K: int) -> nn.Module:
    layer = library.nn.Linear4bit(
        K, N, False, torch.bfloat16, quant_type="nf4", compress_statistics=False, device="meta"
    )
    layer.weight = library.nn.Params4bit(
        sizes.normal(N, K).cpu(), False, compress_statistics=False, quant_type="nf4"
    )
    return layer.to(sizes.device)


def _eight_bit(sizes: Sizes, library: ModuleType, N: int, K: int, threshold: float) -> nn.Module:
    layer = library.nn.Linear8bitLt(
        K, N, False, has_fp16_weights=False, threshold=threshold, device="meta"
    )
    weight = sizes.normal(N, K, dtype=torch.float16).cpu()
    layer.weight = library.nn.Int8Params(weight, has_fp16_weights=False, requires_grad=False)
    return layer.to(sizes.device).eval()


def _linear4bit(sizes: Sizes, libraries: dict[str, ModuleType], M: int, N: int, K: int) -> Case:
    x = functools.cache(lambda: sizes.normal(M, K))
    packed = N * K // 2 + 4 * N * K // 64

    def ours(library: ModuleType) -> Call:
        return _calls(sizes, lambda: _four_bit(sizes, library, N, K), packed, x())

    def dense() -> Call:
        return _calls(sizes, lambda: _dense(sizes, N, K), 2 * N * K, x())

    labels = {"operation": "gemm_4bit", "M": M, "N": N, "K": K}
    sides = _sides(libraries, ours, torch_bf16=dense)
    return Case(f"gemm_4bit {N}x{K} M={M}", labels, packed, sides)


def _gradient(sizes: Sizes, libraries: dict[str, ModuleType], M: int, N: int, K: int) -> Case:
    x = functools.cache(lambda: sizes.normal(M, K).requires_grad_())
    gradient = functools.cache(lambda: sizes.normal(M, N))

    def step(layer: nn.Module) -> object:
        return torch.autograd.grad(layer(x()), x(), gradient())

    def ours(library: ModuleType) -> Call:
        return Call([functools.partial(step, _four_bit(sizes, library, N, K))])

    def dense() -> Call:
        return Call([functools.partial(step, _dense(sizes, N, K))])

    labels = {"operation": "Linear4bit forward + gradient", "M": M, "N": N, "K": K}
    sides = _sides(libraries, ours, torch_bf16=dense)
    return Case(f"Linear4bit forward + gradient {N}x{K} M={M}", labels, 0, sides)


def _linear8bit(
    sizes: Sizes,
    libraries: dict[str, ModuleType],
    M: int,
    N: int,
    K: int,
    threshold: float,
) -> Case:
    @functools.cache
    def x() -> torch.Tensor:
        values = sizes.normal(M, K)
        values[:, torch.randperm(K, device=sizes.device)[: K // 1000]] *= 20  # outlier columns
        return values

    def ours(library: ModuleType) -> Call:
        return _calls(sizes, lambda: _eight_bit(sizes, library, N, K, threshold), N * K, x())

    def dense() -> Call:
        return _calls(sizes, lambda: _dense(sizes, N, K), 2 * N * K, x())

    labels = {"operation": "Linear8bitLt", "M": M, "N": N, "K": K, "threshold": threshold}
    sides = _sides(libraries, ours, torch_bf16=dense)
    return Case(f"Linear8bitLt {N}x{K} M={M} threshold={threshold:g}", labels, 0, sides)


def _step(sizes: Sizes, libraries: dict[str, ModuleType], count: int, numel: int) -> Case:
    def call(factory: Callable[..., torch.optim.Optimizer]) -> Call:
        parameters = [nn.Parameter(sizes.normal(numel, dtype=torch.float32)) for _ in range(count)]
        for p in parameters:
            p.grad = sizes.normal(numel, dtype=torch.float32)
        return Call([factory(parameters, lr=1e-4).step], wall=True)

    def ours(library: ModuleType) -> Call:
        return call(library.optim.Adam8bit)

    fused = functools.partial(call, functools.partial(torch.optim.AdamW, fused=True))
    labels = {"operation": "Adam8bit", "count": count, "numel": numel}
    moved = count * numel * (4 + 2 * (4 + 2))  # gradient in; parameter and two states in and out
    sides = {**_sides(libraries, ours), FUSED: fused}
    return Case(f"Adam8bit {count} x {numel}", labels, moved, sides)


def libraries() -> dict[str, ModuleType]:
    """Return bnbx and, if it is installed, bitsandbytes."""
    found = {"bnbx": bnbx, "bitsandbytes": bitsandbytes()}
    return {name: library for name, library in found.items() if library}
