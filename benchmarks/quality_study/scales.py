"""What a search for scales gains, and what it takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from bnbx.functional import dequantize_4bit, quantize_4bit
from quality_study.results import Gain
from quality_study.variants import BLOCKSIZE, SKIPPED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

#: Values of each linear layer that make the sample of a model, a multiple of the blocksize.
PER_LAYER = 64 * BLOCKSIZE
#: Scales that an exhaustive search tries, in units of the largest magnitude, and refinements.
TRIALS = [sign * (0.4 + 0.01 * step) for step in range(141) for sign in (1, -1)]
REFINEMENTS = 4
REPEATS = 7


def gains(model: nn.Module) -> Iterator[Gain]:
    """Yield the gains on normal values and on weights of a model."""
    layers = (
        layer.weight.data.view(-1)[:PER_LAYER]
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != SKIPPED
    )
    normal = torch.randn(1 << 19, generator=torch.Generator().manual_seed(0))
    samples = {"normal": normal, "the model's": torch.cat(list(layers)).float()}
    for values, sample in samples.items():
        for kind in ("nf4", "fp4"):
            yield _gain(kind, values, sample)


def _gain(kind: str, values: str, sample: Tensor) -> Gain:
    plain = _errors(sample, kind, {}).sum()
    searched = _errors(sample, kind, {"scale_search": True}).sum()
    nested = [
        _errors(sample, kind, {"scale_search": s, "compress_statistics": True}) for s in (0, 1)
    ]
    return Gain(
        kind=kind,
        values=values,
        searched=float(1 - searched / plain),
        exhaustive=float(1 - _exhaustive(sample, kind) / plain),
        nested=float(1 - nested[1].sum() / nested[0].sum()),
        nested_worse=float((nested[1] > nested[0]).float().mean()),
        times={
            str(dtype)[6:]: _times(sample.to(dtype), kind)
            for dtype in (torch.bfloat16, torch.float32)
        },
    )


def _errors(sample: Tensor, kind: str, settings: dict[str, bool]) -> Tensor:
    """Return the squared error of each block."""
    packed, state = quantize_4bit(sample, blocksize=BLOCKSIZE, quant_type=kind, **settings)
    return (sample - dequantize_4bit(packed, state)).view(-1, BLOCKSIZE).square().sum(1)


def _exhaustive(sample: Tensor, kind: str) -> Tensor:
    how = (BLOCKSIZE, kind)
    scales = torch.ops.bnbx.scale_search_4bit(sample, None, TRIALS, REFINEMENTS, *how)
    codes = torch.ops.bnbx.encode_4bit(sample, scales, *how, torch.uint8)
    decoded = torch.ops.bnbx.dequantize_4bit(codes, scales, *how, sample.shape, sample.dtype)
    return (sample - decoded).square().sum()


def _times(sample: Tensor, kind: str) -> float:
    """Return the processor time of a search over that of plain quantization."""

    def best(search: bool) -> float:
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            quantize_4bit(sample, quant_type=kind, scale_search=search)
            times.append(time.process_time() - start)
        return min(times)

    return best(True) / best(False)
