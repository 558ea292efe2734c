"""LLM.int8() functions against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from bnbx import functional as F

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (17, 64), (0, 8), (3, 0)])
def test_vectorwise_round_trip(dtype: torch.dtype, shape: tuple[int, int], device: str) -> None:
    A = torch.randn(shape, device=device).to(dtype)
    codes, stats, outliers = F.int8_vectorwise_quant(A)
    assert outliers is None
    assert codes.dtype == torch.int8
    for row, code, stat in zip(A.tolist(), codes.tolist(), stats.tolist(), strict=True):
        assert stat == max((abs(x) for x in row), default=0.0)
        assert all(abs(x * 127 / stat - c) <= 0.5001 for x, c in zip(row, code, strict=True))
    values = F.int8_vectorwise_dequant(codes, stats)
    assert values.dtype == torch.float32
    expected = codes.double() * stats.double().unsqueeze(1) / 127
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outlier_columns_are_left_out(dtype: torch.dtype, device: str) -> None:
    A = torch.rand(9, 40, device=device).to(dtype)
    A[2, 5], A[7, 5], A[3, 38] = 6.0, 9.0, -7.0
    codes, stats, outliers = F.int8_vectorwise_quant(A, threshold=6.0)
    assert outliers is not None
    assert outliers.tolist() == [5, 38]
    assert not codes[:, [5, 38]].any()
    assert stats.max() <= 1.0
    _, _, none = F.int8_vectorwise_quant(A.clamp(-5, 5), threshold=6.0)
    assert none is not None
    assert none.numel() == 0


def test_double_quant(device: str) -> None:
    A = torch.randn(20, 30, device=device)
    A[3, 4] = 10.0
    for threshold in (0.0, 6.0):
        rows, columns, row_stats, col_stats, outliers = F.int8_double_quant(A, threshold=threshold)
        expected = F.int8_vectorwise_quant(A, threshold)
        assert torch.equal(rows, expected[0])
        assert torch.equal(row_stats, expected[1])
        kept = A.masked_fill(A.abs() >= threshold, 0.0) if threshold else A
        codes, stats, _ = F.int8_vectorwise_quant(kept.t())
        assert torch.equal(col_stats, stats)
        inliers = torch.ones(30, dtype=torch.bool, device=device)
        if outliers is not None:
            assert outliers.tolist() == [4]
            inliers[outliers] = False
        assert torch.equal(columns[:, inliers], codes.t()[:, inliers])


@pytest.mark.parametrize("batch", [(5,), (2, 3), (), (0,)])
@pytest.mark.parametrize(("N", "K"), [(7, 33), (64, 130), (0, 3), (3, 0)])
def test_product_and_its_scales(batch: tuple[int, ...], N: int, K: int, device: str) -> None:
    A = torch.randint(-127, 128, (*batch, K), dtype=torch.int8, device=device)
    B = torch.randint(-127, 128, (N, K), dtype=torch.int8, device=device)
    product = F.int8_linear_matmul(A, B)
    assert product.dtype == torch.int32
    assert torch.equal(product.long().cpu(), A.long().cpu() @ B.long().cpu().t())
    out = torch.empty_like(product)
    assert F.int8_linear_matmul(A, B, out) is out
    assert torch.equal(out, product)

    row_stats = torch.rand(math.prod(batch), device=device)
    col_stats = torch.rand(N, device=device)
    bias = torch.randn(N, dtype=torch.float16, device=device)
    scale = row_stats.double().view(*batch, 1) * col_stats.double() / 127**2
    expected = product.double() * scale + bias.double()
    result = F.int8_mm_dequant(product, row_stats, col_stats, bias=bias)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)
    for dtype in DTYPES:
        out = torch.empty(product.shape, dtype=dtype, device=device)
        assert F.int8_mm_dequant(product, row_stats, col_stats, out, bias) is out
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), expected, rtol=eps, atol=1e-5)


def test_wrong_arguments() -> None:
    A = torch.randn(4, 8)
    codes, stats, _ = F.int8_vectorwise_quant(A)
    product = F.int8_linear_matmul(codes, codes)
    for call, blamed in (
        (lambda: F.int8_vectorwise_quant(A.double()), "A"),
        (lambda: F.int8_vectorwise_quant(A[0]), "A"),
        (lambda: F.int8_vectorwise_quant(A, -1.0), "threshold"),
        (lambda: F.int8_vectorwise_quant(A, math.nan), "threshold"),
        (lambda: F.int8_vectorwise_dequant(A, stats), "A"),
        (lambda: F.int8_vectorwise_dequant(codes, stats[:3]), "stats"),
        (lambda: F.int8_double_quant(A, row_stats=stats), "row_stats"),
        (lambda: F.int8_double_quant(A, stats), "col_stats"),
        (lambda: F.int8_double_quant(A, out_row=codes), "out_row"),
        (lambda: F.int8_double_quant(A, out_col=codes), "out_col"),
        (lambda: F.int8_linear_matmul(codes, codes[:, :7]), "A"),
        (lambda: F.int8_linear_matmul(codes, codes, dtype=torch.float32), "dtype"),
        (lambda: F.int8_linear_matmul(codes, codes, torch.empty(4, 4)), "out"),
        (lambda: F.int8_mm_dequant(product.float(), stats, stats), "A"),
        (lambda: F.int8_mm_dequant(product, stats[:3], stats), "row_stats"),
        (lambda: F.int8_mm_dequant(product, stats, stats.double()), "col_stats"),
        (lambda: F.int8_mm_dequant(product, stats, stats, torch.empty(4, 4).double()), "dtype"),
        (lambda: F.int8_mm_dequant(product, stats, stats, torch.empty(4, 5)), "out"),
        (lambda: F.int8_mm_dequant(product, stats, stats, bias=stats[:3]), "bias"),
    ):
        with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
            call()
