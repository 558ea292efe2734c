"""matmul_4bit_grouped: groups of rows times 4-bit weights of their own, with gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from bnbx import matmul_4bit_grouped
from bnbx.functional import dequantize_4bit, gemm_4bit_grouped_transposed, quantize_4bit

E, N, K = 4, 24, 64
ROWS = (3, 0, 5, 1)
OFFSETS = torch.tensor(list(itertools.accumulate(ROWS)))
BEHIND = 2  # rows that belong to no weight


def stack(shape=(E, N, K), **settings):
    weights = torch.randn(shape) / 8
    packed, state = quantize_4bit(weights, quant_type="nf4", **settings)
    return packed, state, dequantize_4bit(packed, state)


def expected_of(A, weights, bias):
    """Return the product of each group by itself, zeros for the rows behind the last one."""
    groups = A.split([*ROWS, BEHIND])
    parts = [x @ w.t() for x, w in zip(groups, weights, strict=False)]
    if bias is not None:
        parts = [part + b for part, b in zip(parts, bias, strict=True)]
    return torch.cat([*parts, torch.zeros(BEHIND, weights.shape[1])])


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_values_and_gradients(transposed, with_bias, nested):
    shape = (E, K, N) if transposed else (E, N, K)
    packed, state, weights = stack(shape, compress_statistics=nested)
    weights = weights.mT if transposed else weights
    tensors = [torch.randn(sum(ROWS) + BEHIND, K)] + [torch.randn(E, N)] * with_bias
    grads = []
    for multiply in (
        lambda A, bias=None: matmul_4bit_grouped(
            A, packed, state, OFFSETS.int(), bias, transposed=transposed
        ),
        lambda A, bias=None: expected_of(A, weights, bias),
    ):
        given = [t.clone().requires_grad_() for t in tensors]
        out = multiply(*given)
        out.square().sum().backward()
        grads.append([out.detach(), *(t.grad for t in given)])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert (grads[0][1][-BEHIND:] == 0).all()


def test_the_second_derivative():
    packed, state, _ = stack()
    A = torch.randn(sum(ROWS), K, requires_grad=True)
    (grad,) = torch.autograd.grad(
        matmul_4bit_grouped(A, packed, state, OFFSETS).square().sum(), A, create_graph=True
    )
    (second,) = torch.autograd.grad(grad.square().sum(), A)
    once = gemm_4bit_grouped_transposed(
        matmul_4bit_grouped(2 * grad.detach(), packed, state, OFFSETS), packed, state, OFFSETS
    )
    torch.testing.assert_close(second, 2 * once, rtol=1e-3, atol=1e-3)


def test_a_bias_of_another_dtype_and_without_gradient():
    packed, state, weights = stack()
    A, bias = torch.randn(sum(ROWS) + BEHIND, K).bfloat16(), torch.randn(E, N)
    out = matmul_4bit_grouped(A, packed, state, OFFSETS, bias)
    assert out.dtype is torch.bfloat16
    expected = expected_of(A.float(), weights, bias)
    torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)
    bias.requires_grad_()
    matmul_4bit_grouped(A, packed, state, OFFSETS, bias).sum().backward()
    torch.testing.assert_close(bias.grad, torch.tensor(ROWS)[:, None].expand(E, N).float())


def test_refuses():
    packed, state, _ = stack()
    A = torch.randn(sum(ROWS), K)
    with pytest.raises(ValueError, match="^quant_state: expected the QuantState"):
        matmul_4bit_grouped(A, packed, None, OFFSETS)
    _, flat = quantize_4bit(torch.randn(N, K))
    with pytest.raises(ValueError, match=r"^quant_state.shape: expected \(E, N, K\)"):
        matmul_4bit_grouped(A, packed, flat, OFFSETS)
    for bias in (torch.randn(N), torch.randn(E, K)):
        with pytest.raises(ValueError, match="^bias: expected shape"):
            matmul_4bit_grouped(A, packed, state, OFFSETS, bias)
