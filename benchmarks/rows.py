"""The rows of the side-by-side table: what each contestant does for one operation.

bnbx and bitsandbytes share their public names, so that one function prepares both. Contestants:

``bnbx``
    this package; layers in eval mode.
``bitsandbytes``
    layers in training mode: 4-bit weights stay in the canonical layout.
``bitsandbytes eval``
    layers in eval mode, where it repacks 4-bit weights on a CPU with AVX512-BF16.
``torch bf16``, ``torch fp32``
    the dense layer; for the optimizers, ``torch.optim.AdamW(fused=True)``.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import bnbx
from common import PARAMETERS, SIZE, activations, nbytes, normal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

DENSE = {"torch bf16": torch.bfloat16, "torch fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Row:
    """One operation.

    Attributes
    ----------
    calls
        Contestant -> what is timed.
    moved
        Bytes that any implementation must read and write once.
    """

    calls: dict[str, Callable[[], object]]
    moved: int


def libraries() -> dict[str, ModuleType]:
    """Return bnbx and, where it is installed, bitsandbytes with its log silenced."""
    found = {"bnbx": bnbx}
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    try:
        import bitsandbytes  # optional, and slow to import
    except ImportError:
        return found
    return {**found, "bitsandbytes": bitsandbytes}


def quantize_4bit() -> Row:
    A = normal(SIZE, SIZE)
    calls = {
        name: functools.partial(library.functional.quantize_4bit, A, quant_type="nf4", blocksize=64)
        for name, library in libraries().items()
    }
    packed, state = calls["bnbx"]()
    return Row(calls, nbytes(A, packed, state.absmax))


def _output(library: ModuleType, A: Tensor) -> dict[str, Tensor]:
    """Return an ``out`` argument like ``A``, except for bitsandbytes, which has none on a CPU."""
    return {"out": torch.empty_like(A)} if library is bnbx else {}


def dequantize_4bit() -> Row:
    A = normal(SIZE, SIZE)
    calls = {}
    for name, library in libraries().items():
        packed, state = library.functional.quantize_4bit(A, quant_type="nf4", blocksize=64)
        call = library.functional.dequantize_4bit
        calls[name] = functools.partial(call, packed, state, **_output(library, A))
    return Row(calls, nbytes(packed, state.absmax, A))


def quantize_blockwise() -> Row:
    A = normal(SIZE, SIZE)
    calls = {
        name: functools.partial(library.functional.quantize_blockwise, A)
        for name, library in libraries().items()
    }
    codes, state = calls["bnbx"]()
    return Row(calls, nbytes(A, codes, state.absmax))


def dequantize_blockwise() -> Row:
    A = normal(SIZE, SIZE)
    calls = {}
    for name, library in libraries().items():
        codes, state = library.functional.quantize_blockwise(A)
        call = library.functional.dequantize_blockwise
        calls[name] = functools.partial(call, codes, state, **_output(library, A))
    return Row(calls, nbytes(codes, state.absmax, A))


def _dense(weight: Tensor, dtype: torch.dtype) -> torch.nn.Module:
    layer = torch.nn.Linear(*reversed(weight.shape), bias=False, dtype=dtype)
    layer.weight.data.copy_(weight)
    return layer.requires_grad_(False)


def _linear4bit(library: ModuleType, weight: Tensor) -> torch.nn.Module:
    layer = library.nn.LinearNF4(*reversed(weight.shape), False, torch.bfloat16)
    layer.weight = library.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    return layer.to("cpu")


def _linear8bit(library: ModuleType, weight: Tensor, threshold: float) -> torch.nn.Module:
    layer = library.nn.Linear8bitLt(
        *reversed(weight.shape), bias=False, has_fp16_weights=False, threshold=threshold
    )
    layer.weight = library.nn.Int8Params(
        weight.clone(), has_fp16_weights=False, requires_grad=False
    )
    return layer.to("cpu")


def _layers(make: Callable[[ModuleType], torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield each contestant with its quantized layer, in the mode that its name says."""
    for name, library in libraries().items():
        if name == "bitsandbytes":
            yield name, make(library).train()
            yield f"{name} eval", make(library).eval()
        else:
            yield name, make(library).eval()


def _forwards(
    weight: Tensor, x: Tensor, make: Callable[[ModuleType], torch.nn.Module], bits: int
) -> Row:
    calls = {name: functools.partial(layer, x) for name, layer in _layers(make)}
    for name, dtype in DENSE.items():
        calls[name] = functools.partial(_dense(weight, dtype), x.to(dtype))
    return Row(calls, nbytes(x, calls["torch bf16"]()) + weight.numel() * bits // 8)


def linear4bit(M: int, size: int = SIZE) -> Row:
    weight = normal(size, size)
    return _forwards(weight, normal(M, size), functools.partial(_linear4bit, weight=weight), 4)


def linear8bit(M: int, threshold: float) -> Row:
    weight, x = normal(SIZE, SIZE), activations(M, SIZE)
    make = functools.partial(_linear8bit, weight=weight, threshold=threshold)
    return _forwards(weight, x, make, 8)


def linear4bit_backward(M: int) -> Row:
    weight = normal(SIZE, SIZE)
    x, grad = normal(M, SIZE), normal(M, SIZE)

    def call(layer: torch.nn.Module, dtype: torch.dtype) -> Callable[[], object]:
        leaf, gradient = x.to(dtype).requires_grad_(), grad.to(dtype)
        return lambda: torch.autograd.grad(layer(leaf), leaf, gradient)

    calls = {
        name: call(_linear4bit(library, weight).train(), torch.bfloat16)
        for name, library in libraries().items()
    }
    for name, dtype in DENSE.items():
        calls[name] = call(_dense(weight, dtype), dtype)
    # Forward and backward each read a 16-bit matrix and the 4-bit weight, and write a matrix.
    return Row(calls, 4 * nbytes(x) + 2 * weight.numel() // 2)


def _parameters(count: int, numel: int) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.randn(numel)) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.randn(numel)
    return parameters


def optimizer(class_name: str, count: int, numel: int) -> Row:
    def call(cls: Callable[..., torch.optim.Optimizer], **settings: object) -> Callable[[], object]:
        return cls(_parameters(count, numel), lr=1e-4, **settings).step

    calls = {
        name: call(getattr(library.optim, class_name)) for name, library in libraries().items()
    }
    calls["torch fp32"] = call(torch.optim.AdamW, fused=True)
    # float32 gradient read, parameter and both states read and written.
    state_bytes = 1 if "8bit" in class_name else 4
    return Row(calls, count * numel * (4 + 2 * (4 + 2 * state_bytes)))


ROWS: dict[str, Callable[[], Row]] = {
    "quantize_4bit": quantize_4bit,
    "dequantize_4bit": dequantize_4bit,
    "quantize_blockwise": quantize_blockwise,
    "dequantize_blockwise": dequantize_blockwise,
    **{f"gemm_4bit M={M}": functools.partial(linear4bit, M) for M in (1, 8, 64, 512)},
    **{
        f"Linear8bitLt M={M} threshold={threshold:g}": functools.partial(linear8bit, M, threshold)
        for M in (1, 512)
        for threshold in (0.0, 6.0)
    },
    "Adam8bit 16M": functools.partial(optimizer, "Adam8bit", *PARAMETERS[0]),
    "Adam32bit 16M": functools.partial(optimizer, "Adam32bit", *PARAMETERS[0]),
    "Adam8bit 300 x 50k": functools.partial(optimizer, "Adam8bit", *PARAMETERS[1]),
    "Linear4bit forward+backward M=512": functools.partial(linear4bit_backward, 512),
    "Linear4bit 64x64 M=1": functools.partial(linear4bit, 1, 64),
}
