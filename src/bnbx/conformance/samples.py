"""One good call of every operation."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from bnbx import codebooks
from bnbx.backends import reference
from bnbx.ops import OPTIMIZERS, RULES, state_shape

SIGNED = codebooks.create_dynamic_map()
UNSIGNED = codebooks.create_dynamic_map(signed=False)
#: The maps of optimizer states by their bits: of those that are never negative, and of the others.
STATE_MAPS = {
    8: (UNSIGNED, SIGNED),
    4: tuple(codebooks.create_optimizer_map_4bit(signed) for signed in (False, True)),
}


def arguments(
    name: str, M: int = 3, N: int = 5, K: int = 70, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Return the arguments of an operation on random activations (M, K) and a weight (N, K)."""
    return copy.deepcopy(_every_call(M, N, K, dtype)[name])


@functools.cache
def _every_call(M: int, N: int, K: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    A, W, bias = torch.randn(M, K).to(dtype), torch.randn(N, K), torch.randn(N).to(dtype)
    A[0, 1] = 7.0  # an outlier
    packed, absmax = reference.quantize_4bit(W, 64, "nf4", torch.uint8)
    offset = absmax.mean()
    absmax_8bit, absmax_absmax = reference.quantize_blockwise(absmax - offset, SIGNED, 256)
    codes, scales = reference.quantize_blockwise(W, SIGNED, 256)
    CA, SCA, outlier_cols = reference.int8_vectorwise_quant(A, 6.0)
    CB, SCB, _ = reference.int8_vectorwise_quant(W)
    sums = reference.int8_linear_matmul(CA, CB)
    of_4bit = {"blocksize": 64, "quant_type": "nf4"}
    decode_4bit = {"A": packed, "absmax": absmax, **of_4bit, "shape": [N, K], "dtype": dtype}
    decode_8bit = {"A": codes, "absmax": scales, "code": SIGNED, "blocksize": 256, "dtype": dtype}
    stats = {"row_stats": SCA, "col_stats": SCB}
    nested_4bit = {
        "B": packed,
        "shapeB": [N, K],
        "absmax": absmax_absmax,
        **of_4bit,
        "absmax_8bit": absmax_8bit,
        "absmax_code": SIGNED,
        "absmax_offset": offset,
        "absmax_blocksize": 256,
    }
    grouped_4bit = {**nested_4bit, "shapeB": [1, N, K], "offsets": torch.tensor([M])}
    return {
        "quantize_4bit": {"A": W.to(dtype), **of_4bit, "quant_storage": torch.uint8},
        "scale_search_4bit": {
            "A": W.to(dtype),
            "importance": torch.rand(K),
            "factors": [0.9, -1.0, 1.1],
            "refinements": 1,
            **of_4bit,
        },
        "encode_4bit": {
            "A": W.to(dtype),
            "absmax": -absmax,
            **of_4bit,
            "quant_storage": torch.uint8,
        },
        "dequantize_4bit": decode_4bit,
        "dequantize_4bit.out": {**decode_4bit, "out": W.to(dtype)},
        "gemm_4bit": {"A": A, **nested_4bit, "bias": bias},
        "gemm_4bit_transposed": {"A": torch.randn(M, N).to(dtype), **nested_4bit},
        # A stack of one weight, which is why the other arguments are the same.
        "gemm_4bit_grouped": {"A": A, **grouped_4bit, "bias": bias.unsqueeze(0)},
        "gemm_4bit_grouped_transposed": {"A": torch.randn(M, N).to(dtype), **grouped_4bit},
        "quantize_blockwise": {"A": W.to(dtype), "code": SIGNED, "blocksize": 256},
        "dequantize_blockwise": decode_8bit,
        "dequantize_blockwise.out": {**decode_8bit, "out": W.to(dtype)},
        "int8_vectorwise_quant": {"A": A, "threshold": 6.0},
        "int8_vectorwise_dequant": {"A": CA, "stats": SCA},
        "int8_double_quant": {"A": A, "threshold": 6.0},
        "int8_linear_matmul": {"A": CA, "B": CB},
        "int8_linear_matmul.out": {"A": CA, "B": CB, "out": torch.empty_like(sums)},
        "int8_mm_dequant": {"A": sums, **stats, "dtype": dtype, "bias": bias},
        "int8_scaled_mm": {"A": CA, "B": CB, **stats, "bias": bias, "dtype": dtype},
        "int8_mixed_scaled_mm": {
            "A": A,
            "CA": CA,
            "CB": CB,
            "SCA": SCA,
            "SCB": SCB,
            "outlier_cols": outlier_cols,
            "bias": bias,
        },
        "int8_linear": {"A": A, "CB": CB, "SCB": SCB, "threshold": 6.0, "bias": bias},
        "estimate_quantiles": {"A": W.to(dtype), "offset": 1 / 512, "num_quantiles": 256},
        "optimizer_update_32bit": update_32bit((W.shape, bias.shape), dtype),
        "optimizer_update_blockwise": update_blockwise(8, (W.shape, bias.shape), dtype),
    }


def update_32bit(
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    name: str = "adam",
    **hyperparameters: float,
) -> dict[str, Any]:
    """Return the arguments of one update of parameters of the given shapes."""
    states = RULES[OPTIMIZERS[name]]
    values = [
        [
            (torch.randn if signed else torch.rand)(state_shape(shape, stacked)) * 0.1
            for shape in shapes
        ]
        for signed, stacked in states
    ]
    limited = hyperparameters.get("max_unorm", 0.0) > 0.0
    return {
        "optimizer_name": name,
        "g": [torch.randn(shape).to(dtype) for shape in shapes],
        "p": [torch.randn(shape).to(dtype) for shape in shapes],
        "state1": values[0],
        "state2": values[1] if len(values) > 1 else [],
        "unorm_vec": [torch.zeros(1) for _ in shapes] if limited else [],
        "step": [3 + i for i, _ in enumerate(shapes)],
        "lr": 1e-2,
        "beta1": 0.9,
        "beta2": 0.99,
        "beta3": 0.999,
        "alpha": 3.0,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "gnorm_scale": 1.0,
        "skip_zeros": False,
        "max_unorm": 0.0,
        **hyperparameters,
    }


def packed(state: torch.Tensor, qmap: torch.Tensor) -> list[torch.Tensor]:
    """Return the packed nearest codes of 4 bits, in blocks of 128, and the scales."""
    flat = state.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % 128)).view(-1, 128)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks / absmax.clamp(min=1e-38).unsqueeze(1)).view(-1, 1)
    codes = (scaled - qmap).abs().argmin(dim=1).view(-1, 2)
    return [(16 * codes[:, 0] + codes[:, 1]).to(torch.uint8)[: (flat.numel() + 1) // 2], absmax]


def unpacked(state: torch.Tensor, numel: int) -> torch.Tensor:
    """Return ``numel`` codes of 4 bits as indices."""
    return torch.stack([state // 16, state % 16], dim=-1).flatten()[:numel].int()


def encoded(state: torch.Tensor, bits: int, qmap: torch.Tensor, stacked: int) -> list[torch.Tensor]:
    """Return codes and scales of a state, each of the values that it stacks by itself."""
    parts = state.unbind() if stacked > 1 else [state]
    quantized = [
        packed(part, qmap) if bits == 4 else reference.quantize_blockwise(part, qmap, 256)
        for part in parts
    ]
    return [torch.stack(t) if stacked > 1 else t[0] for t in zip(*quantized, strict=True)]


def update_blockwise(
    bits: int,
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    name: str = "adam",
    **hyperparameters: float,
) -> dict[str, Any]:
    """Return the arguments of the same update with states of 8 or 4 bits."""
    call = update_32bit(shapes, dtype, name, **hyperparameters)
    call |= {"bits": bits, "qmap2": None, "absmax2": []}
    for i, (signed, stacked) in enumerate(RULES[OPTIMIZERS[name]], 1):
        qmap = call[f"qmap{i}"] = STATE_MAPS[bits][signed]
        states = [encoded(state, bits, qmap, stacked) for state in call[f"state{i}"]]
        call[f"state{i}"] = [codes for codes, _ in states]
        call[f"absmax{i}"] = [absmax for _, absmax in states]
    return call
