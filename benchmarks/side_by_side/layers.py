"""Linear layers of every side, made from one weight."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import bnbx
from common import normal
from side_by_side.libraries import bitsandbytes, torchao

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

#: Bytes of the copies of one side's weight: in a model, too, a weight comes from memory.
ROTATION = 2**28
#: Copies of a small weight.
MOST_COPIES = 256
#: A weight with fewer elements is not copied: a call costs more than the work in it.
SMALL = 2**16
#: Elements that share a scale in the 4-bit formats.
BLOCKSIZE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Maker:
    """How one side makes its layer.

    Attributes
    ----------
    make
        Returns the layer for a weight, in the mode in which it is timed.
    bits
        Of an element of the layer's weight.
    dtype
        Of its activations.
    """

    make: Callable[[Tensor], nn.Module]
    bits: int
    dtype: torch.dtype = torch.bfloat16


def _linear4bit(weight: Tensor, library: ModuleType, *, nested: bool, training: bool) -> nn.Module:
    N, K = weight.shape
    layer = library.nn.LinearNF4(K, N, False, weight.dtype, nested, device="meta")
    # The formats are the same, and bnbx is quick at quantizing.
    packed, state = bnbx.functional.quantize_4bit(
        weight, blocksize=BLOCKSIZE, compress_statistics=nested, quant_type="nf4"
    )
    layer.weight = library.nn.Params4bit.from_prequantized(
        packed, state.as_dict(packed=True), device="cpu", module=layer
    )
    return layer.train(training)


def _linear8bit(
    weight: Tensor, library: ModuleType, *, threshold: float, training: bool
) -> nn.Module:
    N, K = weight.shape
    options = {"bias": False, "has_fp16_weights": False, "threshold": threshold}
    layer = library.nn.Linear8bitLt(K, N, **options, device="meta")
    layer.weight = library.nn.Int8Params(
        weight.clone(), has_fp16_weights=False, requires_grad=False
    )
    return layer.to("cpu").train(training)


def _dense(weight: Tensor, dtype: torch.dtype) -> nn.Module:
    N, K = weight.shape
    layer = nn.Linear(K, N, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
    return layer


class _TorchInt4(nn.Module):
    """torch's product with a packed 4-bit weight; the codes are random, which costs the same."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        N, K = weight.shape
        codes = torch.randint(0, 16, (N, K), dtype=torch.int32)
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu  # noqa: SLF001
        self.register_buffer("packed", pack(codes, 1))
        scales_and_zeros = torch.rand(K // BLOCKSIZE, N, 2).to(weight.dtype)
        self.register_buffer("scales_and_zeros", scales_and_zeros)

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001
        return product(x, self.packed, BLOCKSIZE, self.scales_and_zeros)


@functools.cache
def _compiled_linear() -> Callable[[Tensor, Tensor], Tensor]:
    # One function for all layers: torch.compile of a layer would compile for each copy of it.
    def linear(x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.linear(x, weight)

    return torch.compile(linear, dynamic=False)


class _TorchaoInt8(nn.Module):
    """torchao's layer with int8 weights and activations quantized by row, compiled."""

    def __init__(self, weight: Tensor) -> None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        super().__init__()
        layer = _dense(weight, weight.dtype)
        quantize_(layer, Int8DynamicActivationInt8WeightConfig())
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return _compiled_linear()(x, self.weight)


@functools.cache
def dense() -> dict[str, Maker]:
    """Return the makers of torch's dense layers."""
    dtypes = {"torch bf16": torch.bfloat16, "torch fp32": torch.float32}
    return {
        side: Maker(functools.partial(_dense, dtype=dtype), dtype.itemsize * 8, dtype)
        for side, dtype in dtypes.items()
    }


@functools.cache
def four_bit(*, nested: bool) -> dict[str, Maker]:
    """Return the makers of 4-bit layers.

    bitsandbytes repacks its weight in the first evaluation, where there is AVX512-BF16, so that it
    takes part twice: in training mode, with the canonical layout, and in evaluation.
    """
    options = {"nested": nested, "training": False}
    makers = {"bnbx": Maker(functools.partial(_linear4bit, library=bnbx, **options), 4)}
    if library := bitsandbytes():
        repacked = functools.partial(_linear4bit, library=library, **options)
        makers["bitsandbytes"] = Maker(functools.partial(repacked, training=True), 4)
        makers["bitsandbytes repacked"] = Maker(repacked, 4)
    if not nested:
        makers["torch int4"] = Maker(_TorchInt4, 4)
    return makers


@functools.cache
def eight_bit(threshold: float) -> dict[str, Maker]:
    """Return the makers of LLM.int8() layers."""
    options = {"threshold": threshold, "training": False}
    makers = {"bnbx": Maker(functools.partial(_linear8bit, library=bnbx, **options), 8)}
    if library := bitsandbytes():
        evaluated = functools.partial(_linear8bit, library=library, **options)
        makers["bitsandbytes"] = Maker(evaluated, 8)
        makers["bitsandbytes training"] = Maker(functools.partial(evaluated, training=True), 8)
    if torchao() and not threshold:
        makers["torchao int8"] = Maker(_TorchaoInt8, 8)
    return makers


class Shape:
    """A random bf16 weight of N outputs and K inputs, and the layers made from it."""

    def __init__(self, N: int, K: int) -> None:
        self.N, self.K = N, K
        self.weight = normal(N, K)
        self._layers: dict[Maker, list[nn.Module]] = {}

    def layers(self, maker: Maker) -> list[nn.Module]:
        """Return equal layers that together exceed the caches; they are made once."""
        if maker not in self._layers:
            layer = maker.make(self.weight)
            with torch.no_grad():
                layer(normal(1, self.K, dtype=maker.dtype))  # repacking is not timed
            count = math.ceil(ROTATION / (self.weight.numel() * maker.bits // 8))
            count = 1 if self.weight.numel() < SMALL else min(MOST_COPIES, count)
            self._layers[maker] = [layer, *(copy.deepcopy(layer) for _ in range(count - 1))]
        return self._layers[maker]


@functools.lru_cache(maxsize=1)
def shape(N: int, K: int, _variant: str) -> Shape:
    """Return the shape's layers of a variant; only the last are kept, because they are large."""
    return Shape(N, K)
