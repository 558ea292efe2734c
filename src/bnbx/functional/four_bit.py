"""4-bit quantization: NF4 and FP4, with plain or nested scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnbx.codebooks import get_4bit_type
from bnbx.functional.blockwise import nest
from bnbx.functional.outputs import into
from bnbx.functional.quant_state import QuantState
from bnbx.ops import check_4bit_type, error

#: Blocks of the scales of nested states, part of the format.
NESTED_BLOCKSIZE = 256


def _both_signs(*factors: float) -> list[float]:
    return [signed for factor in factors for signed in (factor, -factor)]


#: Scales that a search tries, in units of the absmax, by type and whether errors are weighted.
#: Chosen one after the other, each for the largest gain on normal, Laplace and a model's weights.
#: Those above 1.2 put the largest value on the second or third entry of the table.
FACTORS = {
    ("nf4", False): _both_signs(0.86, 0.91, 0.95, 1.0, 1.06, 1.35),
    ("nf4", True): _both_signs(
        *(0.69, 0.76, 0.81, 0.86, 0.9, 0.95, 1.0, 1.05, 1.12, 1.24, 1.33, 1.42)
    ),
    ("fp4", False): [0.75, 0.8, 0.84, 0.88, 0.92, 0.96, 1.01, 1.07],  # a table without a sign
    ("fp4", True): [
        *(0.52, 0.6, 0.66, 0.71, 0.76, 0.8, 0.83, 0.86),
        *(0.9, 0.94, 0.98, 1.03, 1.09, 1.18, 1.32, 1.47),
    ],
}
REFINEMENTS = 1

# The dispatcher takes a shape as a list in half the time that it needs for a torch.Size.
_gemm_4bit = torch.ops.bnbx.gemm_4bit.default
_gemm_4bit_transposed = torch.ops.bnbx.gemm_4bit_transposed.default
_gemm_4bit_grouped = torch.ops.bnbx.gemm_4bit_grouped.default
_gemm_4bit_grouped_transposed = torch.ops.bnbx.gemm_4bit_grouped_transposed.default


def quantize_4bit(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: torch.dtype = torch.uint8,
    *,
    scale_search: bool = False,
    importance: Tensor | None = None,
) -> tuple[Tensor, QuantState]:
    """Quantize a tensor to 4 bits, in blocks of consecutive elements that share one scale.

    Parameters
    ----------
    A
        float32, float16 or bfloat16, any shape.
    absmax
        Written to and used as the state's scales if given: float32 (uint8 with
        ``compress_statistics``), one per block.
    out
        Written to and returned if given: of the result's shape and dtype.
    blocksize
        Elements per block: 32, 64 (the default), 128, 256, 512, 1024, 2048 or 4096.
    compress_statistics
        Whether the scales are quantized too, to 8 bits in blocks of 256.
    quant_type
        ``"nf4"`` or ``"fp4"``.
    quant_storage
        The dtype whose elements hold the codes: uint8, bfloat16, float16 or float32.
    scale_search
        Whether to look for the scale of each block, of either sign, with the smallest squared
        error, in place of its absmax. Whatever reads the format decodes the result.
    importance
        With ``scale_search``: weights of the squared errors of each column, float32 of the last
        dimension's size, such as second moments of the activations that the column multiplies.

    Returns
    -------
    torch.Tensor
        Two codes to a byte, the first in the high bits, of shape ``(elements, 1)``.
    QuantState
        What ``dequantize_4bit`` and ``matmul_4bit`` need.

    Raises
    ------
    ValueError
        If a dtype, shape, type or the blocksize is wrong.

    References
    ----------
    Dettmers et al. 2023, QLoRA, section 3.
    """
    blocksize = 64 if blocksize is None else blocksize
    how = (blocksize, quant_type, quant_storage)
    if scale_search:
        scales = search_scales(A, blocksize, quant_type, importance)
    else:
        if importance is not None:
            raise error("importance", "None without scale_search", "a tensor")
        packed, scales = torch.ops.bnbx.quantize_4bit.default(A, *how)
    offset = state2 = None
    if compress_statistics:
        scales, offset, state2 = nest(scales, NESTED_BLOCKSIZE)
    state = QuantState(
        absmax=into("absmax", absmax, scales),
        shape=A.shape,
        code=get_4bit_type(quant_type, A.device),
        blocksize=blocksize,
        quant_type=quant_type,
        dtype=A.dtype,
        offset=offset,
        state2=state2,
    )
    if scale_search:  # for the scales as they will be decoded
        packed = torch.ops.bnbx.encode_4bit.default(A, state.float_absmax(), *how)
    return into("out", out, packed), state


def search_scales(A: Tensor, blocksize: int, quant_type: str, importance: Tensor | None) -> Tensor:
    """Return the scales of ``quantize_4bit`` with ``scale_search``, float32, one per block."""
    check_4bit_type(blocksize, quant_type)
    if importance is not None:
        if not bool((importance >= 0).all() & importance.isfinite().all()):
            raise error("importance", "finite numbers of at least 0", "others")
        # Only ratios count. In this range no product of the search is too small for float32.
        largest = importance.max() if importance.numel() else importance.sum()
        importance = importance / largest.clamp(min=torch.finfo(torch.float32).tiny)
    factors = FACTORS[quant_type, importance is not None]
    scales: Tensor = torch.ops.bnbx.scale_search_4bit.default(
        A, importance, factors, REFINEMENTS, blocksize, quant_type
    )
    return scales


def quantize_fp4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """Quantize to FP4: ``quantize_4bit`` with ``quant_type="fp4"``."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "fp4", quant_storage)


def quantize_nf4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """Quantize to NF4: ``quantize_4bit`` with ``quant_type="nf4"``."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "nf4", quant_storage)


def dequantize_4bit(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    quant_type: str = "fp4",
) -> Tensor:
    """Undo ``quantize_4bit``.

    Parameters
    ----------
    A
        The packed codes, in any shape and storage dtype.
    quant_state
        The state that ``quantize_4bit`` returned.
    absmax, blocksize, quant_type
        In place of a state, together with ``out``: scales, float32, one per block; elements per
        block, by default 64; ``"nf4"`` or ``"fp4"``. Used only without ``quant_state``.
    out
        Written to and returned if given: contiguous, of the state's shape and dtype.

    Returns
    -------
    torch.Tensor
        Values of the state's shape and dtype; transposed if A is a packed weight transposed, of
        shape ``(1, elements)``.

    Raises
    ------
    ValueError
        If neither state nor scales are given, or a dtype, shape or count is wrong.
    """
    if quant_state is None:
        if absmax is None or out is None:
            missing = "absmax" if absmax is None else "out"
            raise error(missing, "a tensor, because there is no quant_state", None)
        quant_state = QuantState(absmax, out.shape, None, blocksize or 64, quant_type, out.dtype)
    arguments = (
        A,
        quant_state.float_absmax(),
        quant_state.blocksize,
        quant_state.quant_type,
        quant_state.shape,
        quant_state.dtype,
    )
    if out is None:
        out = torch.ops.bnbx.dequantize_4bit.default(*arguments)
    else:
        torch.ops.bnbx.dequantize_4bit.out(*arguments, out=out)
    # A single element is its own transpose and means nothing by it.
    is_transposed = A.dim() == 2 and A.shape[0] == 1 and A.shape[1] > 1
    return out.t() if is_transposed and out.dim() == 2 else out


def dequantize_fp4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """Undo ``quantize_fp4``: ``dequantize_4bit`` with ``quant_type="fp4"``."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "fp4")


def dequantize_nf4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """Undo ``quantize_nf4``: ``dequantize_4bit`` with ``quant_type="nf4"``."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "nf4")


def gemm_4bit(A: Tensor, B: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """Multiply with a 4-bit weight: ``A @ dequantize_4bit(B, state).T + bias``, without gradients.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(..., K)``.
    B
        The packed weight, in any shape.
    state
        Its state, of shape ``(N, K)``; nested or not.
    bias
        Of shape ``(N,)`` and A's dtype.

    Returns
    -------
    torch.Tensor
        Of shape ``(..., N)`` and A's dtype.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit together.
    """
    shape, (absmax, *nested) = [*state.shape], kernel_scales(state)
    result: Tensor = _gemm_4bit(
        A, B, shape, absmax, state.blocksize, state.quant_type, bias, *nested
    )
    return result


def gemm_4bit_transposed(A: Tensor, B: Tensor, state: QuantState) -> Tensor:
    """Multiply with a 4-bit weight: ``A @ dequantize_4bit(B, state)``, without gradients.

    It is what the gradient of ``gemm_4bit`` for its input needs.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(..., N)``.
    B
        The packed weight, in any shape.
    state
        Its state, of shape ``(N, K)``; nested or not.

    Returns
    -------
    torch.Tensor
        Of shape ``(..., K)`` and A's dtype.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit together.
    """
    shape, (absmax, *nested) = [*state.shape], kernel_scales(state)
    result: Tensor = _gemm_4bit_transposed(
        A, B, shape, absmax, state.blocksize, state.quant_type, *nested
    )
    return result


def gemm_4bit_grouped(
    A: Tensor, B: Tensor, state: QuantState, offsets: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Multiply each group of rows with a 4-bit weight of its own, without gradients.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(T, K)``, the rows of the first weight first.
    B
        The packed weights, in any shape.
    state
        Their state, of shape ``(E, N, K)``; nested or not.
    offsets
        int32 or int64 of shape ``(E,)``, ascending: the row behind the last one of each weight.
    bias
        Of shape ``(E, N)`` and A's dtype.

    Returns
    -------
    torch.Tensor
        Of shape ``(T, N)`` and A's dtype: ``A[i] @ W[e].T + bias[e]`` for the rows ``i`` of weight
        ``e``, zeros for rows behind those of the last weight.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not fit together, or if offsets are not ascending numbers
        from 0 to T.
    """
    shape, (absmax, *nested) = [*state.shape], kernel_scales(state)
    result: Tensor = _gemm_4bit_grouped(
        A, B, shape, absmax, state.blocksize, state.quant_type, offsets, bias, *nested
    )
    return result


def gemm_4bit_grouped_transposed(
    A: Tensor, B: Tensor, state: QuantState, offsets: Tensor
) -> Tensor:
    """Multiply each group of rows with a 4-bit weight of its own: ``A[i] @ W[e]``.

    As ``gemm_4bit_grouped``, of which it is the gradient for A, but A is ``(T, N)`` and the result
    ``(T, K)``; there is no bias.
    """
    shape, (absmax, *nested) = [*state.shape], kernel_scales(state)
    result: Tensor = _gemm_4bit_grouped_transposed(
        A, B, shape, absmax, state.blocksize, state.quant_type, offsets, *nested
    )
    return result


def kernel_scales(state: QuantState) -> tuple[Any, ...]:
    """Return the ops' argument absmax and, if it is nested, the arguments that say how."""
    if not state.nested:
        return (state.absmax,)
    state2 = state.state2
    return state2.absmax, state.absmax, state2.code, state.offset, state2.blocksize


def gemv_4bit(
    A: Tensor,
    B: Tensor,
    out: Tensor | None = None,
    transposed_A: bool = False,
    transposed_B: bool = False,
    state: QuantState | None = None,
) -> Tensor:
    """Multiply with a 4-bit weight: ``A @ dequantize_4bit(B, state).T``, for any number of rows.

    Parameters
    ----------
    A
        float32, float16 or bfloat16 of shape ``(..., K)``.
    B
        The packed weight, in any shape.
    out
        Written to and returned if given: of the result's shape and dtype.
    transposed_A, transposed_B
        Must be False: the state says how the weight lies.
    state
        Its state, of shape ``(N, K)``.

    Returns
    -------
    torch.Tensor
        Of shape ``(..., N)`` and A's dtype.

    Raises
    ------
    ValueError
        If there is no state, a transposition is asked for, or shapes or dtypes are wrong.
    """
    if state is None:
        raise error("state", "the QuantState that quantize_4bit returned", None)
    for name, value in (("transposed_A", transposed_A), ("transposed_B", transposed_B)):
        if value:
            raise error(name, False, value, "Transpose A, or the weight before quantizing it.")
    return into("out", out, gemm_4bit(A, B, state))
