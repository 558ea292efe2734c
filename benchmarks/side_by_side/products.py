"""Comparisons of products with quantized weights, forward and backward."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common import activations, normal
from side_by_side import layers
from side_by_side.comparison import Comparison
from side_by_side.libraries import bnbx_sides
from side_by_side.limits import Work
from side_by_side.timing import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from side_by_side.layers import Maker, Shape
    from side_by_side.timing import Function

    Bind = Callable[[nn.Module, Tensor], Function]

FAMILY = "products"


def _forward(layer: nn.Module, x: Tensor) -> Function:
    return functools.partial(layer, x)


def _forward_and_gradient(layer: nn.Module, x: Tensor) -> Function:
    leaf = x.clone().requires_grad_()
    gradient = normal(*layer(x).shape, dtype=x.dtype)
    return lambda: torch.autograd.grad(layer(leaf), leaf, gradient)


def _shape(N: int, K: int, variant: str) -> Callable[[], Shape]:
    # Made when a side asks for its layers, and not when a comparison is only described.
    return functools.partial(layers.shape, N, K, variant)


def _sides(
    shape: Callable[[], Shape], x: Tensor, makers: dict[str, Maker], bind: Bind = _forward
) -> dict[str, Callable[[], Call]]:
    def functions(maker: Maker) -> list[Function]:
        cast = x.to(maker.dtype)
        return [bind(layer, cast) for layer in shape().layers(maker)]

    def call(maker: Maker) -> Call:
        return Call(functions(maker))

    makers = dict(makers)
    ours = bnbx_sides(functools.partial(functions, makers.pop("bnbx")))
    peers = {**makers, **layers.dense()}
    return {**ours, **{side: functools.partial(call, maker) for side, maker in peers.items()}}


def work_4bit(M: int, N: int, K: int) -> Work:
    """Return the work of a product of M rows with a 4-bit weight."""
    return Work(
        moved=2 * M * K + N * K // 2 + N * K // 16 + 2 * M * N,
        memory="read",
        operations=2 * M * N * K,
        unit="bf16",
        formula="max((2 M K + N K / 2 + N K / 16 + 2 M N) / read, 2 M N K / bf16)",
    )


def work_8bit(M: int, N: int, K: int) -> Work:
    """Return the work of a product of M rows with an int8 weight."""
    return Work(
        moved=2 * M * K + N * K + 4 * N + 2 * M * N,
        memory="read",
        operations=2 * M * N * K,
        unit="int8",
        formula="max((2 M K + N K + 4 N + 2 M N) / read, 2 M N K / int8)",
    )


def linear4bit(M: int, N: int, K: int, *, nested: bool = False) -> Comparison:
    """Return the comparison of a call of a 4-bit layer with M rows."""
    return Comparison(
        FAMILY,
        work_4bit(M, N, K),
        _sides(_shape(N, K, f"{nested=}"), normal(M, K), layers.four_bit(nested=nested)),
        {"operation": "gemm_4bit", "M": M, "N": N, "K": K},
    )


def linear8bit(M: int, N: int, K: int, threshold: float) -> Comparison:
    """Return the comparison of a call of an LLM.int8() layer with M rows, some of them outliers."""
    return Comparison(
        FAMILY,
        work_8bit(M, N, K),
        _sides(_shape(N, K, f"{threshold=}"), activations(M, K), layers.eight_bit(threshold)),
        {"operation": "Linear8bitLt", "M": M, "N": N, "K": K},
    )


def linear4bit_gradient(M: int, N: int, K: int) -> Comparison:
    """Return the comparison of forward and gradient of the input, the step of QLoRA."""
    once = work_4bit(M, N, K)
    makers = layers.four_bit(nested=False)
    # torch's packed product has no gradient, and a repacked weight gives none.
    makers = {side: makers[side] for side in ("bnbx", "bitsandbytes") if side in makers}
    return Comparison(
        FAMILY,
        Work(2 * once.moved, "read", f"2 {once.formula}", 2 * once.operations, "bf16"),
        _sides(_shape(N, K, "nested=False"), normal(M, K), makers, _forward_and_gradient),
        {"operation": "Linear4bit forward + input gradient", "M": M, "N": N, "K": K},
    )
