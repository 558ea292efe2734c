"""The product of a mixture's experts with the tokens routed to them, and its transpose.

For each number of tokens the grouped product stands beside torch's ``grouped_mm`` on the same
weights in bfloat16, and beside decoding all experts first.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import grouped_mm

from bnbx.functional import (
    dequantize_4bit,
    gemm_4bit_grouped,
    gemm_4bit_grouped_transposed,
    quantize_4bit,
)
from common import normal

#: (experts, of each token, N, K): few large experts, and many small ones.
SHAPES = {"8-large": (8, 2, 4096, 2048), "64-small": (64, 8, 1024, 2048)}
#: One token, a batch that decodes, a prompt.
TOKENS = (1, 8, 512)


def case(tokens, shape, *, transposed=False):
    """Return rows sorted by expert, where each expert's end, and the experts in bf16 and NF4."""
    E, choices, N, K = SHAPES[shape]
    chosen = torch.stack([torch.randperm(E)[:choices] for _ in range(tokens)]).flatten().sort()
    offsets = torch.searchsorted(chosen.values, torch.arange(E), right=True).int()
    weights = normal(E, *((K, N) if transposed else (N, K)))
    packed, state = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    return normal(tokens * choices, K), offsets, weights, packed, state


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
def bench_gemm_4bit_grouped(benchmark, tokens, shape):
    A, offsets, _, packed, state = case(tokens, shape)
    benchmark(gemm_4bit_grouped, A, packed, state, offsets)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
def bench_gemm_4bit_grouped_transposed(benchmark, tokens, shape):
    A, offsets, _, packed, state = case(tokens, shape, transposed=True)
    benchmark(gemm_4bit_grouped_transposed, A, packed, state, offsets)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
def bench_dense(benchmark, tokens, shape):
    A, offsets, weights, _, _ = case(tokens, shape)
    benchmark(grouped_mm, A, weights.mT, offs=offsets)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
def bench_decoding_all_experts_first(benchmark, tokens, shape):
    A, offsets, _, packed, state = case(tokens, shape)
    benchmark(lambda: grouped_mm(A, dequantize_4bit(packed, state).mT, offs=offsets))
