"""Contracts of 4-bit quantization and of products with a 4-bit weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnbx.ops.batching import rows_at_once
from bnbx.ops.checks import (
    FLOAT_DTYPES,
    STORAGE_DTYPES,
    blocks_of,
    check_4bit_type,
    check_code,
    check_dtype,
    check_entries,
    check_out,
    check_output_dtype,
    check_packed_4bit,
    check_positive,
    check_shape,
    check_vector,
    packed_bytes,
)
from bnbx.ops.contract import error, operation

if TYPE_CHECKING:
    from collections.abc import Sequence


@operation(
    "quantize_4bit(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) "
    "-> (Tensor, Tensor)"
)
def quantize_4bit(
    A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Packed codes of shape ``(elements, 1)`` in ``quant_storage``; absmax float32 per block."""
    check_dtype("A", A, *FLOAT_DTYPES)
    check_4bit_type(blocksize, quant_type)
    if quant_storage not in STORAGE_DTYPES:
        raise error(
            "quant_storage", "torch.uint8, bfloat16, float16 or float32", str(quant_storage)
        )
    numel = A.numel()
    elements = -(-packed_bytes(numel) // quant_storage.itemsize)
    packed = A.new_empty((elements, 1), dtype=quant_storage)
    return packed, A.new_empty(blocks_of(numel, blocksize), dtype=torch.float32)


@operation(
    "scale_search_4bit(Tensor A, Tensor? importance, float[] factors, int refinements, "
    "int blocksize, str quant_type) -> Tensor"
)
def scale_search_4bit(
    A: Tensor,
    importance: Tensor | None,
    factors: Sequence[float],
    refinements: int,
    blocksize: int,
    quant_type: str,
) -> Tensor:
    """Scale of each block, float32 of either sign, whose nearest codes have the smallest error.

    Each of ``factors`` times the block's absmax is tried, and then the scale that is best for the
    codes found, ``refinements`` times. Squared errors are weighted by ``importance``, float32 of
    the last dimension's size, finite and not negative. No block gets a larger error than with its
    absmax.
    """
    check_dtype("A", A, *FLOAT_DTYPES)
    check_4bit_type(blocksize, quant_type)
    if not factors or not all(0.0 < abs(factor) < math.inf for factor in factors):
        raise error("factors", "finite numbers other than 0", list(factors))
    if refinements < 0:
        raise error("refinements", "a number of at least 0", refinements)
    if importance is not None:
        check_vector("importance", importance, torch.float32, A.shape[-1] if A.dim() else 1)
    return A.new_empty(blocks_of(A.numel(), blocksize), dtype=torch.float32)


@operation(
    "encode_4bit(Tensor A, Tensor absmax, int blocksize, str quant_type, "
    "ScalarType quant_storage) -> Tensor"
)
def encode_4bit(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> Tensor:
    """Packed codes, nearest at the scales given: one per block, of either sign.

    The scale of a block that is not finite has to be NaN, so that it decodes to NaN.
    """
    packed: Tensor
    packed, scales = quantize_4bit(A, blocksize, quant_type, quant_storage)
    check_entries("absmax", absmax, torch.float32, scales.numel(), "one per block")
    return packed


def _check_dequantize_4bit(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[int]
) -> None:
    check_4bit_type(blocksize, quant_type)
    check_dtype("A", A, *STORAGE_DTYPES)
    if any(size < 0 for size in shape):
        raise error("shape", "sizes of at least 0", tuple(shape))
    numel = math.prod(shape)
    check_packed_4bit("A", A, numel)
    blocks = blocks_of(numel, blocksize)
    check_entries("absmax", absmax, torch.float32, blocks, "one per block")


@operation(
    "dequantize_4bit(Tensor A, Tensor absmax, int blocksize, str quant_type, SymInt[] shape, "
    "ScalarType dtype) -> Tensor"
)
def dequantize_4bit(
    A: Tensor,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Values of ``shape`` in ``dtype``."""
    _check_dequantize_4bit(A, absmax, blocksize, quant_type, shape)
    check_output_dtype("dtype", dtype)
    return A.new_empty(tuple(shape), dtype=dtype)


@operation(
    "dequantize_4bit.out(Tensor A, Tensor absmax, int blocksize, str quant_type, SymInt[] shape, "
    "ScalarType dtype, *, Tensor(a!) out) -> ()"
)
def dequantize_4bit_out(
    A: Tensor,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    out: Tensor,
) -> None:
    """Write the values into ``out``, contiguous, of ``shape`` and ``dtype``."""
    _check_dequantize_4bit(A, absmax, blocksize, quant_type, shape)
    check_output_dtype("dtype", dtype)
    check_out(out, shape, dtype)


@operation(
    "gemm_4bit(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, str quant_type, "
    "Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
    "Tensor? absmax_offset=None, int absmax_blocksize=256) -> Tensor",
    vmap=rows_at_once,
)
def gemm_4bit(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[int],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
    absmax_blocksize: int = 256,
) -> Tensor:
    """``A @ dequantize(B).T + bias``, ``(*A.shape[:-1], N)`` in A's dtype; ``shapeB`` is (N, K).

    With ``absmax_8bit`` the scale of block ``i`` is ``absmax_code[absmax_8bit[i]] *
    absmax[i // absmax_blocksize] + absmax_offset``; without, it is ``absmax[i]``.
    """
    check_dtype("A", A, *FLOAT_DTYPES)
    N, K = _check_weight_4bit(B, shapeB, blocksize, quant_type)
    shape = [*A.shape]
    if not shape or shape[-1] != K:
        raise error("A", f"a last dimension of {K}, the weight's K", f"shape {tuple(shape)}")
    blocks = blocks_of(N * K, blocksize)
    _check_scales(blocks, absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    if bias is not None:
        check_vector("bias", bias, A.dtype, N)
    shape[-1] = N
    return A.new_empty(*shape)


@operation(
    "gemm_4bit_transposed(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, "
    "str quant_type, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
    "Tensor? absmax_offset=None, int absmax_blocksize=256) -> Tensor",
    vmap=rows_at_once,
)
def gemm_4bit_transposed(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[int],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
    absmax_blocksize: int = 256,
) -> Tensor:
    """``A @ dequantize(B)``, ``(*A.shape[:-1], K)``: the gradient of ``gemm_4bit`` for its A."""
    check_dtype("A", A, *FLOAT_DTYPES)
    N, K = _check_weight_4bit(B, shapeB, blocksize, quant_type)
    shape = [*A.shape]
    if not shape or shape[-1] != N:
        raise error("A", f"a last dimension of {N}, the weight's N", f"shape {tuple(shape)}")
    blocks = blocks_of(N * K, blocksize)
    _check_scales(blocks, absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    shape[-1] = K
    return A.new_empty(*shape)


@operation(
    "gemm_4bit_grouped(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, "
    "str quant_type, Tensor offsets, Tensor? bias=None, Tensor? absmax_8bit=None, "
    "Tensor? absmax_code=None, Tensor? absmax_offset=None, int absmax_blocksize=256) -> Tensor"
)
def gemm_4bit_grouped(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[int],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    offsets: Tensor,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
    absmax_blocksize: int = 256,
) -> Tensor:
    """``gemm_4bit`` with one of E weights for each group of rows; ``shapeB`` is (E, N, K).

    A is ``(T, K)``, its rows sorted by weight; ``offsets`` ``(E,)``, ascending int32 or int64, has
    the row behind the last one of each weight, as in ``torch.nn.functional.grouped_mm``. Rows
    behind the last weight's give zeros. ``bias`` is ``(E, N)``.
    """
    E, N, K = _check_stack_4bit(B, shapeB, blocksize, quant_type)
    _check_groups(A, K, "K", offsets, E)
    blocks = blocks_of(E * N * K, blocksize)
    _check_scales(blocks, absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    if bias is not None:
        check_dtype("bias", bias, A.dtype)
        check_shape("bias", bias, (E, N))
    return A.new_empty(A.shape[0], N)


@operation(
    "gemm_4bit_grouped_transposed(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, "
    "int blocksize, str quant_type, Tensor offsets, Tensor? absmax_8bit=None, "
    "Tensor? absmax_code=None, Tensor? absmax_offset=None, int absmax_blocksize=256) -> Tensor"
)
def gemm_4bit_grouped_transposed(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[int],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    offsets: Tensor,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
    absmax_blocksize: int = 256,
) -> Tensor:
    """``gemm_4bit_transposed`` likewise: A is ``(T, N)``, the result ``(T, K)``."""
    E, N, K = _check_stack_4bit(B, shapeB, blocksize, quant_type)
    _check_groups(A, N, "N", offsets, E)
    blocks = blocks_of(E * N * K, blocksize)
    _check_scales(blocks, absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    return A.new_empty(A.shape[0], K)


def _check_stack_4bit(
    B: Tensor, shapeB: Sequence[int], blocksize: int, quant_type: str
) -> tuple[int, int, int]:
    check_dtype("B", B, *STORAGE_DTYPES)
    check_4bit_type(blocksize, quant_type)
    if len(shapeB) != 3 or any(size < 0 for size in shapeB):
        raise error("shapeB", "three sizes, (E, N, K)", tuple(shapeB))
    E, N, K = shapeB
    check_packed_4bit("B", B, E * N * K)
    return E, N, K


def _check_groups(A: Tensor, depth: int, name: str, offsets: Tensor, E: int) -> None:
    check_dtype("A", A, *FLOAT_DTYPES)
    if A.dim() != 2 or A.shape[1] != depth:
        expected = f"2 dimensions, the second of {depth}, the weights' {name}"
        raise error("A", expected, f"shape {tuple(A.shape)}")
    check_dtype("offsets", offsets, torch.int32, torch.int64)
    check_shape("offsets", offsets, (E,))


def _check_weight_4bit(
    B: Tensor, shapeB: Sequence[int], blocksize: int, quant_type: str
) -> tuple[int, int]:
    check_dtype("B", B, *STORAGE_DTYPES)
    check_4bit_type(blocksize, quant_type)
    if len(shapeB) != 2:
        raise error("shapeB", "two sizes, (N, K)", tuple(shapeB))
    N, K = shapeB
    check_packed_4bit("B", B, N * K)
    return N, K


def _check_scales(
    blocks: int,
    absmax: Tensor,
    absmax_8bit: Tensor | None,
    code: Tensor | None,
    offset: Tensor | None,
    blocksize: int,
) -> None:
    if absmax_8bit is None:
        check_entries("absmax", absmax, torch.float32, blocks, "one per block")
        return
    if code is None or offset is None:
        missing = "absmax_code" if code is None else "absmax_offset"
        raise error(missing, "a tensor, because absmax_8bit is given", None)
    check_positive("absmax_blocksize", blocksize)
    check_entries("absmax_8bit", absmax_8bit, torch.uint8, blocks, "one per block")
    outer = blocks_of(blocks, blocksize)
    check_entries("absmax", absmax, torch.float32, outer, "one per block of absmax_8bit")
    check_code("absmax_code", code)
    check_entries("absmax_offset", offset, torch.float32, 1, "a scalar")
