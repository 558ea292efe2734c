"""What is compared: the operations with a bar, the shapes of real models, and growing sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable

from common import PARAMETERS, ROW_COUNTS, SIZE
from side_by_side.comparison import Comparison
from side_by_side.optimizers import OPTIMIZERS, step
from side_by_side.products import linear4bit, linear4bit_gradient, linear8bit
from side_by_side.quantization import FORMATS, dequantize, quantize

#: By name; None stands for an operation that this version of bnbx lacks.
Cases = dict[str, Callable[[], Comparison | None]]

#: Rows and columns of a weight whose product costs less than the call.
CALL_SIZE = 64
#: Rows of activations, from one token to a long prompt.
SWEEP_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
#: (N, K) of linear layers by model: outputs and inputs.
SWEEP_SHAPES = {
    "SmolLM2-135M": ((576, 576), (1536, 576)),
    "Qwen3-30B-A3B, one expert": ((768, 2048),),
    "Llama-3 8B": ((4096, 4096), (14336, 4096)),
    "Llama-3 70B": ((8192, 8192), (28672, 8192)),
}
#: Elements, to show that time grows in proportion.
GROWTH = tuple(2**exponent for exponent in range(16, 27, 2))


def operations() -> Cases:
    """Return every operation on a 4096x4096 weight or 16 million parameters."""
    square = (SIZE, SIZE)
    cases: Cases = {}
    for codes in FORMATS:
        cases[f"quantize_{codes.suffix}"] = functools.partial(quantize, codes, SIZE**2)
        cases[f"dequantize_{codes.suffix}"] = functools.partial(dequantize, codes, SIZE**2)
    # Those with the same layers follow each other: the layers are made once.
    for M in ROW_COUNTS:
        cases[f"gemm_4bit M={M}"] = functools.partial(linear4bit, M, *square)
    gradient = functools.partial(linear4bit_gradient, 512, *square)
    cases["Linear4bit forward+gradient M=512"] = gradient
    cases["gemm_4bit M=1 nested"] = functools.partial(linear4bit, 1, *square, nested=True)
    for threshold in (0.0, 6.0):
        for M in (1, 512):
            name = f"Linear8bitLt M={M} threshold={threshold:g}"
            cases[name] = functools.partial(linear8bit, M, *square, threshold)
    cases["Linear4bit 64x64 M=1"] = functools.partial(linear4bit, 1, CALL_SIZE, CALL_SIZE)
    for label, tensors in zip(("16M", "300 x 50k"), PARAMETERS, strict=True):
        for optimizer in OPTIMIZERS:
            cases[f"{optimizer.name} {label}"] = functools.partial(step, optimizer, *tensors)
    return cases


def sweep() -> Cases:
    """Return the products on the shapes of models, and the growth of the other operations."""
    cases: Cases = {}
    for shapes in SWEEP_SHAPES.values():
        for N, K in shapes:
            for M in SWEEP_ROWS:
                cases[f"gemm_4bit {N}x{K} M={M}"] = functools.partial(linear4bit, M, N, K)
            for M in SWEEP_ROWS:
                name = f"Linear8bitLt {N}x{K} M={M}"
                cases[name] = functools.partial(linear8bit, M, N, K, 0.0)
    for numel in GROWTH:
        for codes in FORMATS:
            for direction in (quantize, dequantize):
                name = f"{direction.__name__}_{codes.suffix} {numel}"
                cases[name] = functools.partial(direction, codes, numel)
        name = f"{OPTIMIZERS[0].name} {numel}"
        cases[name] = functools.partial(step, OPTIMIZERS[0], 1, numel)
    return cases
