"""Quantile maps and quantization with one scale, against a search through the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bnbx import functional as F

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles_are_those_of_torch(dtype: torch.dtype, device: str) -> None:
    A = torch.randn(20_000, device=device).to(dtype)
    shares = torch.linspace(1 / 512, 1 - 1 / 512, 256, device=device)
    exact = torch.quantile(A.float(), shares)
    torch.testing.assert_close(F.estimate_quantiles(A), exact, rtol=1 / 64, atol=1e-3)
    out = torch.zeros(256, device=device)
    assert F.estimate_quantiles(A, out) is out
    torch.testing.assert_close(out, exact, rtol=1 / 64, atol=1e-3)


def test_fewer_quantiles_have_their_own_offset(device: str) -> None:
    A = torch.linspace(0.0, 1.0, 10_001, device=device)
    found = F.estimate_quantiles(A, num_quantiles=5)
    torch.testing.assert_close(found.cpu(), torch.linspace(0.1, 0.9, 5), rtol=1 / 64, atol=1e-3)
    found = F.estimate_quantiles(A, num_quantiles=5, offset=0.25)
    torch.testing.assert_close(found.cpu(), torch.linspace(0.25, 0.75, 5), rtol=1 / 64, atol=1e-3)


@pytest.mark.parametrize("total_bits", [2, 4, 8])
def test_a_quantile_map_uses_its_codes_equally_often(total_bits: int, device: str) -> None:
    A = torch.randn(100_000, device=device)
    code = F.create_quantile_map(A, total_bits)
    assert code.shape == (256,)
    assert (code.diff() >= 0).all()
    assert code.abs().max() == 1.0
    assert (code != 0).sum() <= 2**total_bits - 1
    codes = F.quantize_no_absmax(
        A / F.estimate_quantiles(A, num_quantiles=2**total_bits - 1).abs().max(), code
    )
    used = torch.bincount(codes.flatten().int().cpu(), minlength=256).float()
    used = used[used > 0] / A.numel()
    assert used.max() < 3 / 2**total_bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["default", "dynamic", "linear", "quantile"])
@pytest.mark.parametrize("shape", [(1,), (300,), (7, 90), (0,)])
def test_quantize(dtype: torch.dtype, kind: str, shape: tuple[int, ...], device: str) -> None:
    A = torch.randn(shape, device=device).to(dtype)
    code = {
        "default": None,
        "dynamic": F.create_dynamic_map(),
        "linear": F.create_linear_map(),
        "quantile": F.create_quantile_map(torch.randn(1000)),
    }[kind]
    codes, state = F.quantize(A, code)
    absmax, table = state
    assert (codes.dtype, codes.shape, absmax.shape) == (torch.uint8, A.shape, ())
    values = F.dequantize(codes, state)
    assert (values.dtype, values.shape) == (torch.float32, A.shape)
    same = F.dequantize(codes, absmax=absmax, code=code)
    assert torch.equal(values, same)
    if A.numel():
        assert absmax == A.float().abs().max()
        nearest = (A.float().flatten().unsqueeze(1) - table.to(device) * absmax).abs().amin(dim=1)
        errors = (values.flatten() - A.float().flatten()).abs()
        assert (errors <= nearest + 1e-6 * absmax).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_scale(dtype: torch.dtype, device: str) -> None:
    A = (torch.rand(500, device=device) * 3 - 1.5).to(dtype)
    code = F.create_linear_map()
    out = torch.zeros(500, dtype=torch.uint8, device=device)
    assert F.quantize_no_absmax(A, code, out) is out
    nearest = (A.float().unsqueeze(1) - code.to(device)).abs().amin(dim=1)
    values = F.dequantize_no_absmax(out, code)
    torch.testing.assert_close((values - A.float()).abs(), nearest)


def test_ties_take_the_lower_entry_and_what_is_outside_an_end() -> None:
    code = torch.arange(256.0)
    codes = F.quantize_no_absmax(torch.tensor([0.5, 1.5, -7.0, 300.0]), code)
    assert codes.tolist() == [0, 1, 0, 255]


@pytest.mark.parametrize(
    ("call", "blamed"),
    [
        (lambda: F.estimate_quantiles(torch.ones(255)), "A"),
        (lambda: F.estimate_quantiles(torch.ones(300), num_quantiles=257), "num_quantiles"),
        (lambda: F.estimate_quantiles(torch.ones(300), torch.zeros(3)), "out"),
        (lambda: F.create_quantile_map(torch.zeros(300)), "A"),
        (lambda: F.create_quantile_map(torch.full((300,), float("nan"))), "A"),
        (lambda: F.create_quantile_map(torch.ones(300), total_bits=9), "total_bits"),
        (lambda: F.quantize_no_absmax(torch.ones(3), torch.ones(3)), "code"),
        (lambda: F.quantize_no_absmax(torch.ones(3), torch.arange(256.0).flip(0)), "code"),
        (lambda: F.dequantize_no_absmax(torch.ones(3), torch.ones(256)), "A"),
        (lambda: F.dequantize(torch.ones(3, dtype=torch.uint8)), "absmax"),
    ],
)
def test_refuses(call: Any, blamed: str) -> None:
    with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
        call()
