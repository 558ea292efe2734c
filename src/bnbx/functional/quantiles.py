"""Quantiles of a tensor, and quantization of a whole tensor with one scale.

The names are those of early releases of bitsandbytes; newer programs use ``quantize_blockwise``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnbx.functional.blockwise import dequantize_blockwise, quantize_blockwise
from bnbx.functional.outputs import into
from bnbx.ops import error
from bnbx.ops.checks import check_ascending, check_code


def estimate_quantiles(
    A: Tensor, out: Tensor | None = None, offset: float = 1 / 512, num_quantiles: int = 256
) -> Tensor:
    """Return evenly spaced quantiles of a tensor, without sorting it.

    Parameters
    ----------
    A
        float32, float16 or bfloat16, at least 256 elements.
    out
        float32 of shape ``(num_quantiles,)``, to write the result to.
    offset
        Share of the values below the first quantile and above the last, from 0 to 0.5; the default
        is half the distance between two of 256.
    num_quantiles
        How many, from 2 to 256. With less than 256 the default of ``offset`` stands for half the
        distance between that many.

    Returns
    -------
    Tensor
        float32 of shape ``(num_quantiles,)``, ascending. Each lies between the values that are its
        neighbours in the sorted tensor, give or take 1/128 of them (bfloat16: exactly); all are NaN
        if A has a NaN.

    Raises
    ------
    ValueError
        If the tensor is too small or of another dtype, or a number is out of range.
    """
    if A.numel() < 256:
        raise error("A", "at least 256 elements", A.numel())
    if not 2 <= num_quantiles <= 256:
        raise error("num_quantiles", "a number from 2 to 256", num_quantiles)
    if num_quantiles < 256 and offset == 1 / 512:
        offset = 1 / (2 * num_quantiles)
    return into("out", out, torch.ops.bnbx.estimate_quantiles.default(A, offset, num_quantiles))


def create_quantile_map(A: Tensor, total_bits: int = 8) -> Tensor:
    """Return a code table whose entries are equally often the nearest for the values of a tensor.

    Parameters
    ----------
    A
        float32, float16 or bfloat16, at least 256 elements.
    total_bits
        Bits per value, from 2 to 8.

    Returns
    -------
    Tensor
        float32 of shape ``(256,)`` on the CPU, ascending: ``2**total_bits - 1`` quantiles of A in
        units of the largest, and zeros.

    Raises
    ------
    ValueError
        If ``total_bits`` is out of range or the tensor has no quantiles but 0, or not finite ones.

    References
    ----------
    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.2.
    """
    if not 2 <= total_bits <= 8:
        raise error("total_bits", "a number from 2 to 8", total_bits)
    quantiles = estimate_quantiles(A, num_quantiles=2**total_bits - 1).cpu()
    largest = quantiles.abs().max()
    if not (largest.isfinite() and largest > 0.0):
        raise error("A", "finite values that are not all 0", f"quantiles up to {largest.item()}")
    code = torch.zeros(256)
    code[: quantiles.numel()] = quantiles / largest
    return code.sort().values


def quantize_no_absmax(A: Tensor, code: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the index of the nearest entry of a code table for each value.

    Parameters
    ----------
    A
        float32, float16 or bfloat16, in units of the table's; what lies outside takes an end.
    code
        float32 of shape ``(256,)``, ascending.
    out
        uint8 of A's shape, to write the codes to.

    Returns
    -------
    Tensor
        uint8 codes of A's shape. A value half-way between two entries takes the lower one.

    Raises
    ------
    ValueError
        If a dtype or shape is wrong, or the table is out of order.
    """
    check_code("code", code)
    check_ascending("code", code)
    bounds = (code[:-1] + code[1:]) / 2
    codes = torch.bucketize(A.float(), bounds.to(A.device), out_int32=True)
    return into("out", out, codes.to(torch.uint8))


def dequantize_no_absmax(A: Tensor, code: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the entry of a code table for each code.

    Parameters
    ----------
    A
        uint8 codes, of any shape.
    code
        float32 of shape ``(256,)``.
    out
        float32 of A's shape, to write the values to.

    Returns
    -------
    Tensor
        float32 of A's shape.

    Raises
    ------
    ValueError
        If ``A`` or ``out`` has another dtype or shape.
    """
    if A.dtype != torch.uint8:
        raise error("A", "uint8 codes", A.dtype)
    return into("out", out, code.to(A.device)[A.int()])


def quantize(
    A: Tensor, code: Tensor | None = None, out: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Quantize a tensor to 8 bits with one scale, its largest magnitude.

    Parameters
    ----------
    A
        float32, float16 or bfloat16.
    code
        float32 of shape ``(256,)``, ascending: a dynamic (the default), linear or quantile map.
    out
        uint8 of A's shape, to write the codes to.

    Returns
    -------
    codes, (absmax, code)
        uint8 codes of A's shape, the scale, a float32 scalar, and the table.

    Raises
    ------
    ValueError
        If a dtype or shape is wrong, or the table is out of order.
    """
    codes, state = quantize_blockwise(A, code, out=out, blocksize=max(A.numel(), 1))
    return codes, (state.float_absmax().sum(), state.code)  # of one scale, or of none


def dequantize(
    A: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the float32 values of what ``quantize`` returned.

    Parameters
    ----------
    A
        uint8 codes.
    state
        The scale and the table.
    absmax, code
        The same, in place of ``state``; the table is the dynamic map by default.
    out
        float32 of A's shape, to write the values to.

    Raises
    ------
    ValueError
        If neither ``state`` nor ``absmax`` is given, or a dtype or shape is wrong.
    """
    if state is not None:
        absmax, code = state
    if absmax is None:
        raise error("absmax", "the scale, or a state with it", None)
    scale = absmax.reshape(1).float()[: A.numel()]
    values = dequantize_blockwise(A, absmax=scale, code=code, blocksize=max(A.numel(), 1))
    return into("out", out, values)
