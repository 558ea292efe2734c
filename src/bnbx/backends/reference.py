"""Every operation in plain PyTorch: the oracle of the tests and what a device without kernels runs.

The functions have the names and arguments of the contracts in ``bnbx.ops``; here stands what an
operation means, in as few lines as it takes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends.reference_rounding import rounded_stochastically, with_rest
from bnbx.backends.reference_rules import Constants, update
from bnbx.backends.reference_scales import best_scales
from bnbx.codebooks import get_4bit_type
from bnbx.ops import OPTIMIZER_BLOCKSIZES, OPTIMIZERS, RULES, packed_bytes
from bnbx.ops.checks import check_ascending, read_offsets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnbx.ops import Int8Quantized

#: Scales below these are not inverted, so that a block of denormals stays finite.
SMALLEST_ABSMAX = 1e-38
SMALLEST_ROW_ABSMAX = 1e-36


def _in_blocks(values: Tensor, blocksize: int) -> Tensor:
    """Return the flattened values as float32 rows of ``blocksize``, zeros filling the last one."""
    flat = values.reshape(-1).float()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % blocksize)).view(-1, blocksize)


def _absmax(blocks: Tensor) -> Tensor:
    """Return the largest magnitude of each row; NaN if the row holds a NaN or an infinity."""
    absmax = blocks.abs().amax(dim=1)
    return torch.where(absmax.isfinite(), absmax, math.nan)


def _nearest(values: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Return the index of the nearest entry of the ascending ``code`` for each value, and absmax.

    A value half-way between two entries takes the lower one. Blocks that are not finite get 0.
    """
    blocks = _in_blocks(values, min(blocksize, max(values.numel(), 1)))
    absmax = _absmax(blocks)
    scaled = blocks * absmax.clamp(min=SMALLEST_ABSMAX).reciprocal().unsqueeze(1)
    index = torch.bucketize(scaled.clamp(-1, 1), (code[:-1] + code[1:]) / 2)
    index = index.masked_fill(absmax.isnan().unsqueeze(1), 0)
    return index.view(-1)[: values.numel()], absmax


def _scaled(values: Tensor, absmax: Tensor, blocksize: int) -> Tensor:
    """Return the flat float32 ``values`` times the absmax of their block."""
    block = torch.arange(values.numel(), device=values.device) // blocksize
    return values * absmax.view(-1)[block]


def _packed(codes: Tensor) -> Tensor:
    """Return an even number of 4-bit codes two to a byte, the first in the high nibble."""
    return codes[0::2] << 4 | codes[1::2]


def _unpacked(packed: Tensor, numel: int) -> Tensor:
    """Return the first ``numel`` of the codes as indices."""
    return torch.stack([packed >> 4, packed & 15], dim=1).view(-1)[:numel].int()


def _stored(packed: Tensor, quant_storage: torch.dtype) -> Tensor:
    """Return bytes as a column of another dtype, zeros filling the last element."""
    packed = torch.nn.functional.pad(packed, (0, -packed.numel() % quant_storage.itemsize))
    return packed.view(quant_storage).unsqueeze(1)


def quantize_4bit(
    A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    table = get_4bit_type(quant_type, A.device)
    order = table.argsort(stable=True)
    values = torch.nn.functional.pad(A.reshape(-1), (0, A.numel() % 2))  # an odd last value: 0
    index, absmax = _nearest(values, table[order], blocksize)
    finite = _scaled(torch.ones_like(index), absmax, blocksize).isfinite()
    packed = _packed(order[index].where(finite, 0).to(torch.uint8))
    return _stored(packed, quant_storage), absmax


def scale_search_4bit(
    A: Tensor,
    importance: Tensor | None,
    factors: Sequence[float],
    refinements: int,
    blocksize: int,
    quant_type: str,
) -> Tensor:
    blocks = _in_blocks(A, min(blocksize, max(A.numel(), 1)))
    weights = None
    if importance is not None:
        weights = _in_blocks(importance.expand(A.shape), blocks.shape[1])
    return best_scales(blocks, _absmax(blocks), weights, factors, refinements, quant_type)


def encode_4bit(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> Tensor:
    table = get_4bit_type(quant_type, A.device)
    order = table.argsort(stable=True)
    code = table[order]
    scales = absmax.view(-1)
    inverse = scales.abs().clamp(min=SMALLEST_ABSMAX).reciprocal()
    inverse = torch.where(scales < 0, -inverse, inverse)
    values = torch.nn.functional.pad(A.reshape(-1).float(), (0, A.numel() % 2))
    scaled = _scaled(values, inverse, blocksize)
    codes = order[torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)]
    is_nan = _scaled(torch.ones_like(values), inverse, blocksize).isnan()
    return _stored(_packed(codes.masked_fill(is_nan, 0).to(torch.uint8)), quant_storage)


def dequantize_4bit(
    A: Tensor,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    numel = math.prod(shape)
    packed = A.contiguous().view(-1).view(torch.uint8)[: packed_bytes(numel)]
    values = get_4bit_type(quant_type, A.device)[_unpacked(packed, numel)]
    return _scaled(values, absmax, blocksize).view(tuple(shape)).to(dtype)


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
    out.copy_(dequantize_4bit(A, absmax, blocksize, quant_type, shape, dtype))


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
    nested = (absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    scales = _scales(absmax, *nested)
    weight = dequantize_4bit(B, scales, blocksize, quant_type, shapeB, A.dtype)
    return torch.nn.functional.linear(A, weight, bias)


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
    nested = (absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    scales = _scales(absmax, *nested)
    return A @ dequantize_4bit(B, scales, blocksize, quant_type, shapeB, A.dtype)


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
    scales = _scales(absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    weights = dequantize_4bit(B, scales, blocksize, quant_type, shapeB, A.dtype)
    return _grouped(A, weights, offsets, bias)


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
    scales = _scales(absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    weights = dequantize_4bit(B, scales, blocksize, quant_type, shapeB, A.dtype)
    return _grouped(A, weights.mT, offsets, None)


def _grouped(A: Tensor, weights: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    out = A.new_zeros(A.shape[0], weights.shape[1])
    begin = 0
    for e, end in enumerate(read_offsets(offsets, A.shape[0])):
        bias_e = None if bias is None else bias[e]
        out[begin:end] = torch.nn.functional.linear(A[begin:end], weights[e], bias_e)
        begin = end
    return out


def _scales(
    absmax: Tensor,
    absmax_8bit: Tensor | None,
    code: Tensor | None,
    offset: Tensor | None,
    blocksize: int,
) -> Tensor:
    """Return one scale per block of 4-bit codes, from plain or from nested absmax."""
    if absmax_8bit is None or code is None or offset is None:
        return absmax
    return _scaled(code[absmax_8bit.view(-1).int()], absmax, blocksize) + offset


def quantize_blockwise(A: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    check_ascending("code", code)
    index, absmax = _nearest(A, code, blocksize)
    return index.to(torch.uint8).view(A.shape), absmax


def dequantize_blockwise(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype
) -> Tensor:
    values = code[A.reshape(-1).int()]
    return _scaled(values, absmax, blocksize).view(A.shape).to(dtype)


def dequantize_blockwise_out(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, *, out: Tensor
) -> None:
    out.copy_(dequantize_blockwise(A, absmax, code, blocksize, dtype))


def _round_to_int8(values: Tensor, absmax: Tensor) -> Tensor:
    codes = (values * (absmax.clamp(min=SMALLEST_ROW_ABSMAX).reciprocal() * 127.0)).round()
    return codes.nan_to_num(0.0).to(torch.int8)


def _without_outliers(A: Tensor, threshold: float) -> tuple[Tensor, Tensor | None]:
    """Return A in float32 with outliers set to zero, and which columns hold one (None at 0)."""
    values = A.float()
    if threshold <= 0.0:
        return values, None
    outliers = values.abs() >= threshold
    return values.masked_fill(outliers, 0.0), outliers.any(dim=0)


def _stats(values: Tensor, dim: int) -> Tensor:
    if values.shape[dim] == 0:
        return values.sum(dim)  # zeros: the maximum of nothing is not defined
    absmax = values.abs().amax(dim=dim)
    return torch.where(absmax.isfinite(), absmax, math.nan)


def int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> Int8Quantized:
    values, outliers = _without_outliers(A, threshold)
    stats = _stats(values, dim=1)
    codes = _round_to_int8(values, stats.unsqueeze(1))
    if outliers is None:
        return codes, stats, None
    return codes.masked_fill(outliers, 0), stats, outliers.nonzero().view(-1)


def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    return A * (stats.view(*A.shape[:-1], 1) / 127.0)


def int8_double_quant(
    A: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    rows, row_stats, outliers = int8_vectorwise_quant(A, threshold)
    values, _ = _without_outliers(A, threshold)
    col_stats = _stats(values, dim=0)
    return rows, _round_to_int8(values, col_stats), row_stats, col_stats, outliers


def int8_linear_matmul(A: Tensor, B: Tensor) -> Tensor:
    # float64 holds every sum of int8 products exactly, on any device that has it.
    wide = torch.float32 if A.device.type == "mps" else torch.float64
    return (A.to(wide) @ B.to(wide).t()).to(torch.int32)


def int8_linear_matmul_out(A: Tensor, B: Tensor, *, out: Tensor) -> None:
    out.copy_(int8_linear_matmul(A, B))


def int8_mm_dequant(
    A: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    dtype: torch.dtype | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    scale = row_stats.view(*A.shape[:-1], 1) * col_stats.view(-1) / 127.0**2
    out = A * scale
    if bias is not None:
        out = out + bias.float()
    return out.to(dtype or torch.float16)


def int8_scaled_mm(
    A: Tensor,
    B: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return int8_mm_dequant(int8_linear_matmul(A, B), row_stats, col_stats, dtype, bias)


def int8_mixed_scaled_mm(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    out = int8_scaled_mm(CA, CB, SCA, SCB, bias, torch.float32)
    columns = None
    if outlier_cols is not None:
        columns = A[:, outlier_cols]
        weight = int8_vectorwise_dequant(CB[:, outlier_cols], SCB)
        out = out + columns.float() @ weight.t()
    return out.to(A.dtype), columns


def int8_linear(
    A: Tensor, CB: Tensor, SCB: Tensor, threshold: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    rows = A.reshape(math.prod(A.shape[:-1]), A.shape[-1])
    CA, SCA, outlier_cols = int8_vectorwise_quant(rows, threshold)
    out, _ = int8_mixed_scaled_mm(rows, CA, CB, SCA, SCB, outlier_cols, bias)
    return out.view(*A.shape[:-1], CB.shape[0])


def estimate_quantiles(A: Tensor, offset: float, num_quantiles: int) -> Tensor:
    values = A.flatten().float().sort().values
    shares = torch.linspace(offset, 1.0 - offset, num_quantiles, dtype=torch.float64)
    ranks = shares * (values.numel() - 1)  # on the CPU: not every device has float64
    low, high = (values[each.long().to(A.device)] for each in (ranks.floor(), ranks.ceil()))
    quantiles = torch.lerp(low, high, (ranks - ranks.floor()).float().to(A.device))
    # Equal neighbours may be infinite, whose difference is NaN. NaN are sorted to the end.
    return torch.where(low == high, low, quantiles).where(~values[-1].isnan(), math.nan)


def optimizer_update_32bit(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
    unorm_vec: Sequence[Tensor],
    step: Sequence[int],
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float = 1.0,
    skip_zeros: bool = False,
    max_unorm: float = 0.0,
    compensation: Sequence[Tensor] | None = None,
    seed: Sequence[int] | None = None,
    live: Tensor | None = None,
) -> None:
    for i, parameter in enumerate(p):
        # What is live stays a tensor, which nobody reads.
        step_i, lr_i, beta3_i, alpha_i, scale_i = (
            (step[i], lr, beta3, alpha, gnorm_scale) if live is None else live[i].unbind()
        )
        numbers = (step_i, lr_i, beta1, beta2, beta3_i, alpha_i)
        constants = Constants(*numbers, eps, weight_decay, scale_i, skip_zeros, max_unorm)
        states = [values[i] for values in (state1, state2) if values]
        old_p = parameter.float()
        if compensation is not None:
            old_p = old_p + compensation[i].float()
        new_p, new_states, unorm = update(optimizer_name, constants, g[i], old_p, states)
        if seed is not None:
            new_p = rounded_stochastically(new_p.float(), seed[i], step_i)
        if compensation is not None:
            new_p, rest = with_rest(new_p)
            compensation[i].copy_(rest)
        parameter.copy_(new_p)
        for state, value in zip(states, new_states, strict=True):
            state.copy_(value)
        if unorm_vec:
            unorm_vec[i].fill_(unorm)


def _parts(codes: Tensor, absmax: Tensor, stacked: int) -> list[tuple[Tensor, Tensor]]:
    """Return codes and scales of each value per element of the parameter that ``codes`` stacks."""
    if stacked == 1:
        return [(codes, absmax)]
    rows = absmax.view(stacked, absmax.numel() // stacked)
    return list(zip(codes.unbind(), rows.unbind(), strict=True))


def _decode_state(
    bits: int, codes: Tensor, absmax: Tensor, qmap: Tensor, shape: torch.Size
) -> Tensor:
    if bits == 8:
        return dequantize_blockwise(codes, absmax, qmap, OPTIMIZER_BLOCKSIZES[8], torch.float32)
    numel = math.prod(shape)
    return _scaled(qmap[_unpacked(codes, numel)], absmax, OPTIMIZER_BLOCKSIZES[4]).view(shape)


def _encode_state(bits: int, state: Tensor, codes: Tensor, absmax: Tensor, qmap: Tensor) -> None:
    if bits == 8:
        new_codes, new_absmax = quantize_blockwise(state, qmap, OPTIMIZER_BLOCKSIZES[8])
    else:
        flat = torch.nn.functional.pad(state.reshape(-1), (0, state.numel() % 2))
        index, new_absmax = _nearest(flat, qmap, OPTIMIZER_BLOCKSIZES[4])
        new_codes = _packed(index.to(torch.uint8))
    codes.copy_(new_codes)
    absmax.copy_(new_absmax.view(absmax.shape))


#: The optional arguments of an update that have an entry for each parameter.
PER_PARAMETER = ("compensation", "seed", "live")


def _of_parameter(i: int, given: Sequence[Any], named: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords with what stands in lists, for the parameter ``i`` alone."""
    named = {**named, **dict(zip(PER_PARAMETER, given, strict=False))}
    lists = {key: named.pop(key, None) for key in PER_PARAMETER}
    return {**named, **{key: None if v is None else v[i : i + 1] for key, v in lists.items()}}


def optimizer_update_blockwise(
    optimizer_name: str,
    bits: int,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
    unorm_vec: Sequence[Tensor],
    qmap1: Tensor,
    qmap2: Tensor | None,
    absmax1: Sequence[Tensor],
    absmax2: Sequence[Tensor],
    step: Sequence[int],
    *others: Any,
    **named: Any,
) -> None:
    """Update states of codes: decode them, update, encode what they have become."""
    quantized = [(state1, absmax1, qmap1)]
    if qmap2 is not None:
        quantized.append((state2, absmax2, qmap2))
    for number, (_, _, qmap) in enumerate(quantized, 1):
        check_ascending(f"qmap{number}", qmap)
    stacked = [kept.stacked for kept in RULES[OPTIMIZERS[optimizer_name]]]
    for i, parameter in enumerate(p):
        coded = [
            (_parts(codes[i], absmax[i], each), qmap)
            for (codes, absmax, qmap), each in zip(quantized, stacked, strict=True)
        ]
        states = []
        for parts, qmap in coded:
            values = [_decode_state(bits, *part, qmap, parameter.shape) for part in parts]
            states.append(values[0] if len(parts) == 1 else torch.stack(values))
        optimizer_update_32bit(
            optimizer_name,
            [g[i]],
            [parameter],
            states[:1],
            states[1:],
            unorm_vec[i : i + 1],
            step[i : i + 1],
            *others[:10],
            **_of_parameter(i, others[10:], named),
        )
        for state, (parts, qmap) in zip(states, coded, strict=True):
            values = [state] if len(parts) == 1 else list(state.unbind())
            for value, part in zip(values, parts, strict=True):
                _encode_state(bits, value, *part, qmap)
