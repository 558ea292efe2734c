"""Blockwise 8-bit quantization with a codebook of 256 entries."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bnbx.codebooks import create_dynamic_map
from bnbx.functional.outputs import into
from bnbx.functional.quant_state import QuantState
from bnbx.ops import error


@functools.cache
def _dynamic_map(device: torch.device) -> Tensor:
    """Return the signed dynamic map; for reading only, it is the same tensor for everyone."""
    # On the CPU even under `torch.device("meta")`: a map without values would stay here for good.
    with torch.device("cpu"):
        return create_dynamic_map().to(device)


def mean_of_finite(absmax: Tensor) -> Tensor:
    """Return the mean of the scales that are finite, 0 if there are none, as a float32 scalar.

    A single block with a NaN must not make the offset of a whole weight NaN. For finite scales this
    is ``absmax.mean()`` to the last bit, which the format prescribes.
    """
    mean = absmax.mean()
    # Scaled by a power of two, so that the sum of large scales does not overflow.
    fallback = torch.nanmean(absmax * 2.0**-40).mul(2.0**40).nan_to_num(0.0)
    return torch.where(mean.isfinite(), mean, fallback)


def nest(absmax: Tensor, blocksize: int) -> tuple[Tensor, Tensor, QuantState]:
    """Quantize the scales themselves; return their codes, the offset and the state.

    References
    ----------
    Dettmers et al. 2023, QLoRA, section 3, "Double Quantization".
    """
    offset = mean_of_finite(absmax)
    codes, state2 = quantize_blockwise(absmax - offset, blocksize=blocksize)
    return codes, offset, state2


def quantize_blockwise(
    A: Tensor,
    code: Tensor | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> tuple[Tensor, QuantState]:
    """Quantize a tensor to 8 bits, in blocks of consecutive elements that share one scale.

    Parameters
    ----------
    A
        float32, float16 or bfloat16, any shape.
    code
        Codebook, float32 of shape ``(256,)``, ascending; the signed dynamic map by default.
    absmax
        Written to and used as the state's scales if given: of their dtype and shape.
    out
        Written to and returned if given: uint8 of A's shape.
    blocksize
        Elements per block.
    nested
        Whether the scales are quantized too.

    Returns
    -------
    torch.Tensor
        Codes, uint8 of A's shape.
    QuantState
        What ``dequantize_blockwise`` needs.

    Raises
    ------
    ValueError
        If a dtype, shape or the blocksize is wrong.

    References
    ----------
    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.
    """
    code = _dynamic_map(A.device) if code is None else code.to(A.device)
    codes, scales = torch.ops.bnbx.quantize_blockwise.default(A, code, blocksize)
    offset = state2 = None
    if nested:
        scales, offset, state2 = nest(scales, blocksize)
    state = QuantState(
        absmax=into("absmax", absmax, scales),
        code=code.clone(),  # the caller may change it; the cached one must stay
        blocksize=blocksize,
        dtype=A.dtype,
        offset=offset,
        state2=state2,
    )
    return into("out", out, codes), state


def dequantize_blockwise(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> Tensor:
    """Undo ``quantize_blockwise``.

    Parameters
    ----------
    A
        Codes, uint8, any shape.
    quant_state
        The state that ``quantize_blockwise`` returned.
    absmax, code, blocksize
        In place of a state: scales, float32, one per block; the codebook, by default the signed
        dynamic map; elements per block. Used only without ``quant_state``.
    out
        Written to and returned if given: contiguous, of A's shape and the result's dtype.
    nested
        Nested scales can only be given as ``quant_state``, which knows whether they are.

    Returns
    -------
    torch.Tensor
        Values of A's shape, in the state's dtype, or float32 without one.

    Raises
    ------
    ValueError
        If neither state nor scales are given, or a dtype, shape or count is wrong.
    """
    if quant_state is None:
        if absmax is None:
            raise error("quant_state", "a QuantState, or absmax in its place", None)
        if nested:
            raise error("nested", "False without quant_state", nested, "Pass a nested QuantState.")
        code = _dynamic_map(A.device) if code is None else code
        quant_state = QuantState(absmax, code=code, blocksize=blocksize, dtype=torch.float32)
    arguments = (
        A,
        quant_state.float_absmax(),
        quant_state.code.to(A.device),
        quant_state.blocksize,
        quant_state.dtype,
    )
    if out is None:
        values: Tensor = torch.ops.bnbx.dequantize_blockwise.default(*arguments)
        return values
    torch.ops.bnbx.dequantize_blockwise.out(*arguments, out=out)
    return out
