"""bnbx.functional and bnbx.autograd against bitsandbytes.

The packed bytes, scales and decoded values have to be equal. Where a value lies so close to the
middle between two codes that rounding decides, and where bitsandbytes does not take the nearest
code, ours has to be at least as near, and such cases have to be few.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bnbx import functional as F
from bnbx.autograd import MatmulLtState, matmul, matmul_4bit

bnb = pytest.importorskip("bitsandbytes")
BF = bnb.functional

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1,), (3, 33), (130, 257), (64, 1024)]


def assert_as_near(A: Tensor, mine: Tensor, theirs: Tensor, allowed: float) -> None:
    """Check decoded values: equal, or no farther from A, and for at most that share of them."""
    mine, theirs, A = mine.double().view(-1), theirs.double().view(-1), A.double().view(-1)
    differs = mine != theirs
    assert differs.double().mean() <= allowed
    distance, theirs_distance = (mine - A).abs()[differs], (theirs - A).abs()[differs]
    # At a tie both are as near as float32 can tell.
    assert (distance <= theirs_distance + 1e-6 * A[differs].abs().clamp(min=1e-6)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("blocksize", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("shape", SHAPES)
def test_4bit(dtype: torch.dtype, quant_type: str, blocksize: int, shape: tuple[int, ...]) -> None:
    A = torch.randn(shape).to(dtype)
    mine, state = F.quantize_4bit(A, blocksize=blocksize, quant_type=quant_type)
    theirs, their_state = BF.quantize_4bit(A, blocksize=blocksize, quant_type=quant_type)
    assert mine.shape == theirs.shape
    assert torch.equal(state.absmax, their_state.absmax)
    assert torch.equal(state.code, their_state.code)
    state.dtype = their_state.dtype = torch.float32
    decoded = F.dequantize_4bit(theirs, state)
    assert torch.equal(decoded, BF.dequantize_4bit(theirs, their_state))
    assert_as_near(A, F.dequantize_4bit(mine, state), decoded, allowed=1e-4)
    assert (mine != theirs).double().mean() <= 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", [torch.uint8, *DTYPES])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4bit_storage(dtype: torch.dtype, storage: torch.dtype, quant_type: str) -> None:
    A = torch.randn(64, 128)
    mine, state = F.quantize_4bit(A.to(dtype), quant_type=quant_type, quant_storage=storage)
    theirs, their_state = BF.quantize_4bit(
        A.to(dtype), quant_type=quant_type, quant_storage=storage
    )
    assert mine.dtype == theirs.dtype
    assert mine.shape == theirs.shape
    assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
    assert torch.equal(F.dequantize_4bit(mine, state), BF.dequantize_4bit(theirs, their_state))
    transposed = F.dequantize_4bit(mine.t(), state), BF.dequantize_4bit(theirs.t(), their_state)
    assert torch.equal(*transposed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 33), (257, 130), (300, 1000)])
def test_nested(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    A = torch.randn(shape).to(dtype)
    mine, state = F.quantize_4bit(A, quant_type="nf4", compress_statistics=True)
    theirs, their_state = BF.quantize_4bit(A, quant_type="nf4", compress_statistics=True)
    assert torch.equal(mine, theirs)
    assert torch.equal(state.offset, their_state.offset)
    assert torch.equal(state.state2.absmax, their_state.state2.absmax)
    assert torch.equal(state.state2.code, their_state.state2.code)
    assert state.state2.dtype == their_state.state2.dtype
    assert state.state2.blocksize == their_state.state2.blocksize
    scales = F.quantize_4bit(A, quant_type="nf4")[1].absmax
    their_scales = BF.dequantize_blockwise(their_state.absmax, their_state.state2)
    assert_as_near(scales, state.float_absmax(), their_scales + their_state.offset, allowed=0.01)
    # Their codes, decoded by both.
    state.absmax = their_state.absmax
    assert torch.equal(F.dequantize_4bit(mine, state), BF.dequantize_4bit(theirs, their_state))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("blocksize", [64, 256, 4096])
@pytest.mark.parametrize("shape", SHAPES)
def test_blockwise(
    dtype: torch.dtype, signed: bool, blocksize: int, shape: tuple[int, ...]
) -> None:
    A = torch.randn(shape).to(dtype)
    A = A if signed else A.abs()
    code = F.create_dynamic_map(signed=signed)
    mine, state = F.quantize_blockwise(A, code, blocksize=blocksize)
    theirs, their_state = BF.quantize_blockwise(A, code, blocksize=blocksize)
    assert torch.equal(state.absmax, their_state.absmax)
    assert torch.equal(state.code, their_state.code)
    state.dtype = their_state.dtype = torch.float32
    decoded = F.dequantize_blockwise(theirs, state)
    assert torch.equal(decoded, BF.dequantize_blockwise(theirs, their_state))
    assert_as_near(A, F.dequantize_blockwise(mine, state), decoded, allowed=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [False, True])
def test_matmul_4bit(dtype: torch.dtype, nested: bool) -> None:
    codes, state = F.quantize_4bit(torch.randn(48, 64).to(dtype), compress_statistics=nested)
    theirs = BF.QuantState.from_dict(state.as_dict(packed=True), torch.device("cpu"))
    results = []
    for function, quant_state in ((matmul_4bit, state), (bnb.matmul_4bit, theirs)):
        torch.manual_seed(1)
        A = torch.randn(2, 5, 64).to(dtype).requires_grad_()
        bias = torch.randn(48).to(dtype)
        output = function(A, codes, quant_state, bias=bias)
        results.append((output, *torch.autograd.grad(output.float().square().sum(), [A])))
    for mine, expected in zip(*results, strict=True):
        eps = torch.finfo(dtype).eps
        scale = expected.abs().max().item()
        torch.testing.assert_close(mine, expected, rtol=0, atol=8 * eps * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 2.5])
def test_int8_functions(dtype: torch.dtype, threshold: float) -> None:
    A = torch.randn(33, 130).to(dtype)
    mine, theirs = F.int8_vectorwise_quant(A, threshold), BF.int8_vectorwise_quant(A, threshold)
    for i in range(3):
        if threshold == 0.0 and i == 2:
            assert mine[i] is None
            assert theirs[i] is None
        else:
            assert torch.equal(mine[i], theirs[i]), i
    codes, stats, _ = mine
    expected = BF.int8_vectorwise_dequant(codes, stats)
    torch.testing.assert_close(F.int8_vectorwise_dequant(codes, stats), expected, rtol=1e-6, atol=0)
    product = F.int8_linear_matmul(codes, codes)
    assert torch.equal(product, BF.int8_linear_matmul(codes, codes))
    bias = torch.randn(33, dtype=torch.float16)
    torch.testing.assert_close(
        F.int8_mm_dequant(product, stats, stats, bias=bias),
        BF.int8_mm_dequant(product, stats, stats, bias=bias),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("threshold", [0.0, 2.5])
def test_int8_matmul(threshold: float) -> None:
    A, weight = torch.randn(2, 7, 64).half(), torch.randn(24, 64).half()
    bias = torch.randn(24).half()
    CB, SCB, _ = F.int8_vectorwise_quant(weight)
    mine = MatmulLtState(CB=CB, SCB=SCB, has_fp16_weights=False, is_training=False)
    theirs = bnb.MatmulLtState(CB=CB.clone(), SCB=SCB.clone())
    theirs.has_fp16_weights = theirs.is_training = False
    with torch.no_grad():
        torch.testing.assert_close(
            matmul(A, CB, state=mine, threshold=threshold, bias=bias),
            bnb.matmul(A, CB, state=theirs, threshold=threshold, bias=bias),
            rtol=2e-3,
            atol=2e-2,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizer_update_32bit(dtype: torch.dtype) -> None:
    results = []
    for update in (F.optimizer_update_32bit, BF.optimizer_update_32bit):
        torch.manual_seed(1)
        p, m, v = torch.randn(300).to(dtype), torch.zeros(300), torch.zeros(300)
        for step in (1, 2, 3):
            g = torch.randn(300).to(dtype)
            update("adam", g, p, m, 0.9, 1e-8, step, 1e-2, v, 0.99, weight_decay=0.1)
        results.append((p, m, v))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_searched_scales_decode_alike(quant_type: str, nested: bool) -> None:
    """Scales of either sign: what is written is read, from packed entries, with equal values."""
    A = torch.randn(64, 256) * torch.rand(64, 1)
    packed, state = F.quantize_4bit(
        A, quant_type=quant_type, compress_statistics=nested, scale_search=True
    )
    if quant_type == "nf4":
        assert (state.float_absmax() < 0).any()
    entries = state.as_dict(packed=True)
    theirs = BF.QuantState.from_dict(entries, torch.device("cpu"))
    decoded = BF.dequantize_4bit(packed, theirs)
    assert torch.equal(F.dequantize_4bit(packed, state), decoded)
    x = torch.randn(3, 256)
    assert torch.allclose(bnb.matmul_4bit(x, packed.t(), theirs), x @ decoded.t(), atol=1e-3)
