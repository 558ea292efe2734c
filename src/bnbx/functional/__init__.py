"""The functions of bnbx, with the names and signatures of bitsandbytes.functional."""

from __future__ import annotations

from bnbx.codebooks import (
    create_dynamic_map,
    create_fp8_map,
    create_linear_map,
    create_normal_map,
    get_4bit_type,
)
from bnbx.functional.blockwise import dequantize_blockwise, quantize_blockwise
from bnbx.functional.four_bit import (
    dequantize_4bit,
    dequantize_fp4,
    dequantize_nf4,
    gemm_4bit,
    gemm_4bit_grouped,
    gemm_4bit_grouped_transposed,
    gemm_4bit_transposed,
    gemv_4bit,
    quantize_4bit,
    quantize_fp4,
    quantize_nf4,
)
from bnbx.functional.int8 import (
    int8_double_quant,
    int8_linear_matmul,
    int8_mm_dequant,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
)
from bnbx.functional.optim import (
    optimizer_update_8bit_blockwise,
    optimizer_update_32bit,
    percentile_clipping,
)
from bnbx.functional.quant_state import QuantState
from bnbx.functional.quantiles import (
    create_quantile_map,
    dequantize,
    dequantize_no_absmax,
    estimate_quantiles,
    quantize,
    quantize_no_absmax,
)

__all__ = [
    "QuantState",
    "create_dynamic_map",
    "create_fp8_map",
    "create_linear_map",
    "create_normal_map",
    "create_quantile_map",
    "dequantize",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_nf4",
    "dequantize_no_absmax",
    "estimate_quantiles",
    "gemm_4bit",
    "gemm_4bit_grouped",
    "gemm_4bit_grouped_transposed",
    "gemm_4bit_transposed",
    "gemv_4bit",
    "get_4bit_type",
    "int8_double_quant",
    "int8_linear_matmul",
    "int8_mm_dequant",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "optimizer_update_8bit_blockwise",
    "optimizer_update_32bit",
    "percentile_clipping",
    "quantize",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_nf4",
    "quantize_no_absmax",
]
