"""Which products with a 4-bit weight are left to torch on an NVIDIA GPU, after decoding the weight.

The kernels read 0.5 bytes for each weight and decode it again for every 64 or 128 rows of
activations. Decoding first moves 2.5 bytes before torch's product begins (in float32 4.5), but that
then runs at the full rate of the tensor cores. docs/cuda.md has the arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Ways(NamedTuple):
    """What is the faster from which rows on, for GPUs from a compute capability on."""

    capability: tuple[int, int]
    #: Elements of the weight, up to which the numbers hold.
    most: float
    #: Rows of activations by the type of the activations.
    float32: int
    float16: int
    bfloat16: int


#: The first line that fits is taken. None of these numbers has been measured; they are reasoned:
#:
#: - Hopper, 9.0: instructions and shared memory set about the same limit, so that after 128 rows
#:   decoding the weight once more costs about as much as decoding first. A decoded weight of up to
#:   2^24 elements stays in the second-level cache; a larger one takes bandwidth.
#: - 10.0 and 11.0 have more bandwidth for each multiprocessor, and no better ``mma.sync``.
#: - 8.0 has ``mma.sync`` at its full rate. So do 8.6 to 8.9 and 12.0, with half the bandwidth, so
#:   that decoding pays off later still.
#: - Turing has no bf16 in its tensor cores and no asynchronous copies; what is older has none.
#: - float32 has no tensor cores in the kernels. Torch's product is several times faster where it
#:   may use TF32, some 1.5 times where it may not.
_WAYS = (
    _Ways((12, 0), float("inf"), float32=64, float16=1024, bfloat16=1024),
    _Ways((10, 0), float("inf"), float32=64, float16=129, bfloat16=129),
    _Ways((9, 0), 2**24, float32=64, float16=129, bfloat16=129),
    _Ways((9, 0), float("inf"), float32=64, float16=257, bfloat16=257),
    _Ways((8, 6), float("inf"), float32=64, float16=1024, bfloat16=1024),
    _Ways((8, 0), float("inf"), float32=64, float16=513, bfloat16=513),
    _Ways((7, 5), float("inf"), float32=64, float16=128, bfloat16=5),
    _Ways((0, 0), float("inf"), float32=32, float16=5, bfloat16=5),
)


def decodes_first(
    capability: tuple[int, int], dtype: torch.dtype, rows: int, weight: Sequence[int]
) -> bool:
    """Return whether to decode the weight, of this shape, and to multiply with torch.

    ``rows`` are those of the activations, of type ``dtype``.
    """
    size = weight[0] * weight[1]
    ways = next(w for w in _WAYS if capability >= w.capability and size <= w.most)
    least = {
        torch.float32: ways.float32,
        torch.float16: ways.float16,
        torch.bfloat16: ways.bfloat16,
    }
    return size > 0 and rows >= least[dtype]
