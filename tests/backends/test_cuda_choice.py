"""Which products with 4-bit weights a GPU decodes first, and that way itself; no GPU is needed."""

from __future__ import annotations

import pytest
import torch

from bnbx.backends import cuda, reference
from bnbx.backends.cuda_choice import decodes_first
from bnbx.ops import FLOAT_DTYPES

DTYPES = tuple(FLOAT_DTYPES)
N, K = 33, 70


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "capability", [(5, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]
)
def test_more_rows_never_go_back_to_the_kernels(capability, dtype):
    for weight in ([1024, 4096], [28672, 8192]):
        ways = [decodes_first(capability, dtype, rows, weight) for rows in range(3000)]
        assert not any(ways[:5])
        assert ways[-1]
        assert ways == sorted(ways)


def test_large_weights_decode_later_and_empty_ones_never():
    hopper = (9, 0), torch.bfloat16
    assert decodes_first(*hopper, 200, [4096, 4096])
    assert not decodes_first(*hopper, 200, [28672, 8192])
    assert not decodes_first(*hopper, 10**6, [0, 64])


class Emulated(cuda.CudaBackend):
    """The backend for CUDA, over tensors and decoding kernels of the CPU."""

    def __init__(self):
        self.calls = 0
        self.stream_of = lambda _: 0

    def dequantize_4bit(self, out, *call):
        self.calls += 1
        return out.copy_(reference.dequantize_4bit(*call))

    def dequantize_blockwise(self, out, *call):
        return out.copy_(reference.dequantize_blockwise(*call))


@pytest.fixture(params=[False, True])
def weight(request):
    """Return the codes, the shape and so on, and then what belongs to nested scales."""
    packed, absmax = reference.quantize_4bit(torch.randn(N, K), 64, "nf4", torch.uint8)
    weight = packed, [N, K], absmax, 64, "nf4"
    if not request.param:
        return weight, ()
    codes = torch.randint(256, (len(absmax),), dtype=torch.uint8)
    return weight, (codes, torch.linspace(-1, 1, 256), torch.tensor(0.7), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decoded_product(monkeypatch, dtype, weight):
    monkeypatch.setattr(cuda, "_capability", lambda _: (9, 0))
    backend = Emulated()
    weight, nested = weight
    A, bias = torch.randn(2, 300, K).to(dtype), torch.randn(N).to(dtype)
    for b in (bias, None):
        out = backend.gemm_4bit(torch.empty(2, 300, N, dtype=dtype), A, *weight, b, *nested)
        torch.testing.assert_close(out, reference.gemm_4bit(A, *weight, b, *nested))
    A = torch.randn(600, N).to(dtype)
    out = backend.gemm_4bit_transposed(torch.empty(600, K, dtype=dtype), A, *weight, *nested)
    torch.testing.assert_close(out, reference.gemm_4bit_transposed(A, *weight, *nested))
    assert backend.calls == 3
