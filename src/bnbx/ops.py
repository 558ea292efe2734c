"""The contract of every operation: its schema, its argument checks and the outputs it allocates.

Each function below is one operation. It checks its arguments, raises ``ValueError`` naming the one
that is wrong, and returns empty outputs of the right shape and dtype. That makes it three things at
once: the fake kernel for ``torch.compile`` and ``torch.export``, the check that runs before any
kernel sees a pointer, and the allocation that the kernel fills. ``backends/`` supplies the kernels.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.codebooks import QUANT_TYPES_4BIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LIBRARY = torch.library.Library("bnbx", "DEF")  # noqa: TOR901 (it lives as long as the process)

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCKSIZES_4BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)
#: Elements that share one scale in an 8-bit optimizer state.
OPTIMIZER_BLOCKSIZE = 256
#: Families that the optimizer kernels implement, in the order of ``bnbx::OptimizerRule``.
OPTIMIZERS = ("adam",)

#: Name of each operation (with overload) -> its contract.
CONTRACTS: dict[str, Callable[..., Any]] = {}

Int8Quantized = tuple[Tensor, Tensor, Tensor | None]


def operation(
    schema: str, fake: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define ``bnbx::<schema>`` with the decorated function as its contract.

    The contract is the fake kernel too, unless ``fake`` is given, for outputs sized by the data.
    """

    def define(contract: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"bnbx::{name}", fake or contract, lib=LIBRARY)
        CONTRACTS[name] = contract
        return contract

    return define


def error(argument: str, expected: object, got: object, hint: str = "") -> ValueError:
    """Return the error of a check: the argument, what was expected, what came, what to do."""
    return ValueError(f"{argument}: expected {expected}, got {got}" + (f". {hint}" if hint else ""))


def blocks_of(numel: int, blocksize: int) -> int:
    """Return the number of blocks, the last one possibly partial."""
    return -(-numel // blocksize)


def packed_bytes(numel: int) -> int:
    """Return the bytes that ``numel`` 4-bit codes take."""
    return -(-numel // 2)


def _dtype(argument: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(str(d) for d in allowed)
        raise error(argument, f"dtype {names}", tensor.dtype)


def _output_dtype(argument: str, dtype: torch.dtype) -> None:
    if dtype not in FLOAT_DTYPES:
        raise error(argument, "torch.float32, torch.float16 or torch.bfloat16", dtype)


def _shape(argument: str, tensor: Tensor, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise error(argument, f"shape {tuple(expected)}", tuple(tensor.shape))


def _numel(argument: str, tensor: Tensor, expected: int, why: str) -> None:
    if tensor.numel() != expected:
        raise error(argument, f"{expected} elements ({why})", tensor.numel())


def _same_device(first: Tensor, **others: Tensor | None) -> None:
    device = first.device
    for argument, tensor in others.items():
        if tensor is not None and tensor.device != device:
            hint = "Move it with .to(device)."
            raise error(argument, f"a tensor on {device}", tensor.device, hint)


def _matrix(argument: str, tensor: Tensor) -> None:
    if tensor.dim() != 2:
        raise error(argument, "2 dimensions", f"shape {tuple(tensor.shape)}")


def _positive(argument: str, value: int) -> None:
    if value <= 0:
        raise error(argument, "a positive number", value)


def check_4bit_type(blocksize: int, quant_type: str) -> None:
    """Raise ``ValueError`` unless the blocksize and the 4-bit type exist."""
    if blocksize not in BLOCKSIZES_4BIT:
        raise error("blocksize", f"one of {BLOCKSIZES_4BIT}", blocksize)
    if quant_type not in QUANT_TYPES_4BIT:
        raise error("quant_type", f"one of {QUANT_TYPES_4BIT}", repr(quant_type))


def _code(argument: str, code: Tensor) -> None:
    _dtype(argument, code, torch.float32)
    _shape(argument, code, (256,))


def _packed_4bit(argument: str, packed: Tensor, numel: int) -> None:
    got = packed.numel() * packed.element_size()
    # quant_storage wider than a byte rounds the last element up; nothing may be missing, and more
    # than one storage element to spare means that the shape is not the one that was quantized.
    if got < packed_bytes(numel) or got - packed_bytes(numel) >= packed.element_size():
        raise error(
            argument,
            f"{packed_bytes(numel)} bytes of packed codes for {numel} elements",
            f"{got} bytes",
            "The weight and its quantization state do not belong together.",
        )


def _out(out: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    _dtype("out", out, dtype)
    _shape("out", out, shape)
    if not out.is_contiguous():
        raise error("out", "a contiguous tensor", f"strides {out.stride()}")


# 4-bit ------------------------------------------------------------------------------------------


@operation(
    "quantize_4bit(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) "
    "-> (Tensor, Tensor)"
)
def quantize_4bit(
    A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Packed codes of shape ``(elements, 1)`` in ``quant_storage``; absmax float32 per block."""
    _dtype("A", A, *FLOAT_DTYPES)
    check_4bit_type(blocksize, quant_type)
    if quant_storage not in {torch.uint8, *FLOAT_DTYPES}:
        raise error(
            "quant_storage", "torch.uint8, bfloat16, float16 or float32", str(quant_storage)
        )
    numel = A.numel()
    elements = -(-packed_bytes(numel) // quant_storage.itemsize)
    packed = A.new_empty((elements, 1), dtype=quant_storage)
    return packed, A.new_empty(blocks_of(numel, blocksize), dtype=torch.float32)


def _check_dequantize_4bit(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[int]
) -> None:
    check_4bit_type(blocksize, quant_type)
    _dtype("A", A, torch.uint8, *FLOAT_DTYPES)
    _dtype("absmax", absmax, torch.float32)
    if any(size < 0 for size in shape):
        raise error("shape", "sizes of at least 0", tuple(shape))
    numel = math.prod(shape)
    _packed_4bit("A", A, numel)
    _numel("absmax", absmax, blocks_of(numel, blocksize), "one per block")
    _same_device(A, absmax=absmax)


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
    _output_dtype("dtype", dtype)
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
    _output_dtype("dtype", dtype)
    _out(out, shape, dtype)
    _same_device(A, out=out)


@operation(
    "gemm_4bit(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, str quant_type, "
    "Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
    "Tensor? absmax_offset=None, int absmax_blocksize=256) -> Tensor"
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
    N, K = _check_weight_4bit(A, B, shapeB, absmax, blocksize, quant_type)
    if A.dim() < 1 or A.shape[-1] != K:
        raise error("A", f"a last dimension of {K}, the weight's K", f"shape {tuple(A.shape)}")
    blocks = blocks_of(N * K, blocksize)
    _check_scales(A, blocks, absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    if bias is not None:
        _dtype("bias", bias, A.dtype)
        _shape("bias", bias, (N,))
        _same_device(A, bias=bias)
    return A.new_empty((*A.shape[:-1], N))


@operation(
    "gemm_4bit_transposed(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, "
    "str quant_type, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
    "Tensor? absmax_offset=None, int absmax_blocksize=256) -> Tensor"
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
    N, K = _check_weight_4bit(A, B, shapeB, absmax, blocksize, quant_type)
    if A.dim() < 1 or A.shape[-1] != N:
        raise error("A", f"a last dimension of {N}, the weight's N", f"shape {tuple(A.shape)}")
    blocks = blocks_of(N * K, blocksize)
    _check_scales(A, blocks, absmax, absmax_8bit, absmax_code, absmax_offset, absmax_blocksize)
    return A.new_empty((*A.shape[:-1], K))


def _check_weight_4bit(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[int],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
) -> tuple[int, int]:
    _dtype("A", A, *FLOAT_DTYPES)
    _dtype("B", B, torch.uint8, *FLOAT_DTYPES)
    _dtype("absmax", absmax, torch.float32)
    check_4bit_type(blocksize, quant_type)
    if len(shapeB) != 2:
        raise error("shapeB", "two sizes, (N, K)", tuple(shapeB))
    N, K = shapeB
    _packed_4bit("B", B, N * K)
    _same_device(A, B=B, absmax=absmax)
    return N, K


def _check_scales(
    A: Tensor,
    blocks: int,
    absmax: Tensor,
    absmax_8bit: Tensor | None,
    code: Tensor | None,
    offset: Tensor | None,
    blocksize: int,
) -> None:
    if absmax_8bit is None:
        _numel("absmax", absmax, blocks, "one per block")
        return
    _check_nested(absmax_8bit, absmax, code, offset, blocksize, blocks)
    _same_device(A, absmax_8bit=absmax_8bit, absmax_code=code, absmax_offset=offset)


def _check_nested(
    absmax_8bit: Tensor,
    absmax: Tensor,
    code: Tensor | None,
    offset: Tensor | None,
    blocksize: int,
    blocks: int,
) -> None:
    if code is None or offset is None:
        missing = "absmax_code" if code is None else "absmax_offset"
        raise error(missing, "a tensor, because absmax_8bit is given", None)
    _positive("absmax_blocksize", blocksize)
    _dtype("absmax_8bit", absmax_8bit, torch.uint8)
    _numel("absmax_8bit", absmax_8bit, blocks, "one per block")
    _numel("absmax", absmax, blocks_of(blocks, blocksize), "one per block of absmax_8bit")
    _code("absmax_code", code)
    _dtype("absmax_offset", offset, torch.float32)
    _numel("absmax_offset", offset, 1, "a scalar")


# Blockwise 8-bit --------------------------------------------------------------------------------


@operation("quantize_blockwise(Tensor A, Tensor code, int blocksize) -> (Tensor, Tensor)")
def quantize_blockwise(A: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 of A's shape; absmax float32 per block of the flattened tensor."""
    _dtype("A", A, *FLOAT_DTYPES)
    _code("code", code)
    _positive("blocksize", blocksize)
    _same_device(A, code=code)
    absmax = A.new_empty(blocks_of(A.numel(), blocksize), dtype=torch.float32)
    return A.new_empty(A.shape, dtype=torch.uint8), absmax


def _check_dequantize_blockwise(A: Tensor, absmax: Tensor, code: Tensor, blocksize: int) -> None:
    _dtype("A", A, torch.uint8)
    _dtype("absmax", absmax, torch.float32)
    _code("code", code)
    _positive("blocksize", blocksize)
    _numel("absmax", absmax, blocks_of(A.numel(), blocksize), "one per block")
    _same_device(A, absmax=absmax, code=code)


@operation(
    "dequantize_blockwise(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) "
    "-> Tensor"
)
def dequantize_blockwise(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype
) -> Tensor:
    """Values of A's shape in ``dtype``."""
    _check_dequantize_blockwise(A, absmax, code, blocksize)
    _output_dtype("dtype", dtype)
    return A.new_empty(A.shape, dtype=dtype)


@operation(
    "dequantize_blockwise.out(Tensor A, Tensor absmax, Tensor code, int blocksize, "
    "ScalarType dtype, *, Tensor(a!) out) -> ()"
)
def dequantize_blockwise_out(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, *, out: Tensor
) -> None:
    """Write the values into ``out``, contiguous, of A's shape and ``dtype``."""
    _check_dequantize_blockwise(A, absmax, code, blocksize)
    _output_dtype("dtype", dtype)
    _out(out, A.shape, dtype)
    _same_device(A, out=out)


# LLM.int8() -------------------------------------------------------------------------------------


def _check_threshold(threshold: float) -> None:
    if not threshold >= 0.0:
        raise error("threshold", "a number of at least 0", threshold)


def _fake_outliers(A: Tensor, threshold: float) -> Tensor | None:
    if threshold <= 0.0:
        return None
    count = torch.library.get_ctx().new_dynamic_size()
    return A.new_empty(count, dtype=torch.int64)


def _fake_int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> Int8Quantized:
    codes, stats, _ = int8_vectorwise_quant(A, threshold)
    return codes, stats, _fake_outliers(A, threshold)


def _fake_int8_double_quant(
    A: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    rows, columns, row_stats, col_stats, _ = int8_double_quant(A, threshold)
    return rows, columns, row_stats, col_stats, _fake_outliers(A, threshold)


@operation(
    "int8_vectorwise_quant(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor?)",
    fake=_fake_int8_vectorwise_quant,
)
def int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> Int8Quantized:
    """Codes int8 of A's shape, row absmax float32, outlier columns int64 (None at threshold 0).

    The contract allocates a mask of columns in their place, which the kernel turns into indices.
    """
    _dtype("A", A, *FLOAT_DTYPES)
    _matrix("A", A)
    _check_threshold(threshold)
    mask = A.new_empty(A.shape[1], dtype=torch.bool) if threshold > 0.0 else None
    stats = A.new_empty(A.shape[0], dtype=torch.float32)
    return A.new_empty(A.shape, dtype=torch.int8), stats, mask


@operation("int8_vectorwise_dequant(Tensor A, Tensor stats) -> Tensor")
def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """``A * stats / 127`` row by row, float32 of A's shape."""
    _dtype("A", A, torch.int8)
    _dtype("stats", stats, torch.float32)
    if A.dim() < 1:
        raise error("A", "at least 1 dimension", "shape ()")
    _numel("stats", stats, math.prod(A.shape[:-1]), "one per row of A")
    _same_device(A, stats=stats)
    return A.new_empty(A.shape, dtype=torch.float32)


@operation(
    "int8_double_quant(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor, Tensor, Tensor?)",
    fake=_fake_int8_double_quant,
)
def int8_double_quant(
    A: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Codes by row, codes by column, row absmax, column absmax, outlier columns."""
    rows, row_stats, mask = int8_vectorwise_quant(A, threshold)
    col_stats = A.new_empty(A.shape[1], dtype=torch.float32)
    return rows, rows.new_empty(rows.shape), row_stats, col_stats, mask


def _check_int8_product(A: Tensor, B: Tensor, a: str = "A", b: str = "B") -> tuple[int, ...]:
    _dtype(a, A, torch.int8)
    _dtype(b, B, torch.int8)
    _matrix(b, B)
    if A.dim() < 1 or A.shape[-1] != B.shape[1]:
        raise error(a, f"a last dimension of {B.shape[1]}, as {b} has", f"shape {tuple(A.shape)}")
    _same_device(A, **{b: B})
    return (*A.shape[:-1], B.shape[0])


@operation("int8_linear_matmul(Tensor A, Tensor B) -> Tensor")
def int8_linear_matmul(A: Tensor, B: Tensor) -> Tensor:
    """``A @ B.T`` in int32."""
    return A.new_empty(_check_int8_product(A, B), dtype=torch.int32)


@operation("int8_linear_matmul.out(Tensor A, Tensor B, *, Tensor(a!) out) -> ()")
def int8_linear_matmul_out(A: Tensor, B: Tensor, *, out: Tensor) -> None:
    """Write ``A @ B.T`` into ``out``, contiguous int32."""
    _out(out, _check_int8_product(A, B), torch.int32)
    _same_device(A, out=out)


def _check_epilogue(
    first: Tensor,
    shape: Sequence[int],
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None,
    rows: str = "row_stats",
    columns: str = "col_stats",
) -> None:
    _dtype(rows, row_stats, torch.float32)
    _dtype(columns, col_stats, torch.float32)
    _numel(rows, row_stats, math.prod(shape[:-1]), "one per row of the product")
    _numel(columns, col_stats, shape[-1], "one per column of the product")
    if bias is not None:
        _dtype("bias", bias, *FLOAT_DTYPES)
        _shape("bias", bias, (shape[-1],))
    _same_device(first, **{rows: row_stats, columns: col_stats, "bias": bias})


@operation(
    "int8_mm_dequant(Tensor A, Tensor row_stats, Tensor col_stats, ScalarType? dtype=None, "
    "Tensor? bias=None) -> Tensor"
)
def int8_mm_dequant(
    A: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    dtype: torch.dtype | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``A * row_stats * col_stats / 127^2 + bias`` in ``dtype`` (float16 by default)."""
    _dtype("A", A, torch.int32)
    if A.dim() < 1:
        raise error("A", "at least 1 dimension", "shape ()")
    dtype = dtype or torch.float16
    _output_dtype("dtype", dtype)
    _check_epilogue(A, A.shape, row_stats, col_stats, bias)
    return A.new_empty(A.shape, dtype=dtype)


@operation(
    "int8_scaled_mm(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, Tensor? bias=None, "
    "ScalarType? dtype=None) -> Tensor"
)
def int8_scaled_mm(
    A: Tensor,
    B: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``int8_mm_dequant(A @ B.T)`` in one pass, in ``dtype`` (float16 by default)."""
    shape = _check_int8_product(A, B)
    dtype = dtype or torch.float16
    _output_dtype("dtype", dtype)
    _check_epilogue(A, shape, row_stats, col_stats, bias)
    return A.new_empty(shape, dtype=dtype)


@operation(
    "int8_mixed_scaled_mm(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, "
    "Tensor? outlier_cols=None, Tensor? bias=None) -> (Tensor, Tensor?)"
)
def int8_mixed_scaled_mm(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The int8 product plus the outlier columns of A in 16 bit; and those columns."""
    _dtype("A", A, *FLOAT_DTYPES)
    _matrix("A", A)
    _shape("CA", CA, A.shape)
    _same_device(A, CA=CA, outlier_cols=outlier_cols)
    shape = _check_int8_product(CA, CB, "CA", "CB")
    _check_epilogue(CA, shape, SCA, SCB, bias, "SCA", "SCB")
    columns = None
    if outlier_cols is not None:
        _dtype("outlier_cols", outlier_cols, torch.int64)
        if outlier_cols.dim() != 1:
            raise error("outlier_cols", "1 dimension", f"shape {tuple(outlier_cols.shape)}")
        columns = A.new_empty((A.shape[0], outlier_cols.shape[0]))
    return A.new_empty(shape), columns


@operation(
    "int8_linear(Tensor A, Tensor CB, Tensor SCB, float threshold=0.0, Tensor? bias=None) -> Tensor"
)
def int8_linear(
    A: Tensor, CB: Tensor, SCB: Tensor, threshold: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """LLM.int8() in one call: quantize A's rows, hold outlier columns back in 16 bit, multiply.

    The shapes do not depend on the data, so it compiles into one graph at any threshold.
    """
    _dtype("A", A, *FLOAT_DTYPES)
    _dtype("CB", CB, torch.int8)
    _dtype("SCB", SCB, torch.float32)
    _matrix("CB", CB)
    _check_threshold(threshold)
    N, K = CB.shape
    if A.dim() < 1 or A.shape[-1] != K:
        raise error("A", f"a last dimension of {K}, as CB has", f"shape {tuple(A.shape)}")
    _numel("SCB", SCB, N, "one per row of CB")
    if bias is not None:
        _dtype("bias", bias, *FLOAT_DTYPES)
        _shape("bias", bias, (N,))
    _same_device(A, CB=CB, SCB=SCB, bias=bias)
    return A.new_empty((*A.shape[:-1], N))


# Optimizers -------------------------------------------------------------------------------------


def _check_update(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    steps: Sequence[int],
    states: dict[str, Sequence[Tensor]],
    state_dtype: torch.dtype,
) -> None:
    if optimizer_name not in OPTIMIZERS:
        raise error("optimizer_name", f"one of {OPTIMIZERS}", repr(optimizer_name))
    for argument, values in {"g": g, "step": steps, **states}.items():
        if len(values) != len(p):
            raise error(argument, f"{len(p)} entries, one per parameter", len(values))
    # Hundreds of parameters come in one call: what is right is passed over quickly, and only what
    # is not gets a name.
    kinds = [
        (argument, values, argument.startswith("absmax")) for argument, values in states.items()
    ]
    for i, parameter in enumerate(p):
        if parameter.dtype not in FLOAT_DTYPES or not parameter.is_contiguous():
            _dtype(f"p[{i}]", parameter, *FLOAT_DTYPES)
            raise error(f"p[{i}]", "a contiguous tensor", f"strides {parameter.stride()}")
        shape, device = parameter.shape, parameter.device
        gradient = g[i]
        if (
            gradient.dtype not in FLOAT_DTYPES
            or gradient.shape != shape
            or gradient.device != device
        ):
            _dtype(f"g[{i}]", gradient, *FLOAT_DTYPES)
            _shape(f"g[{i}]", gradient, shape)
            _same_device(parameter, **{f"g[{i}]": gradient})
        if steps[i] < 1:
            raise error(f"step[{i}]", "at least 1, counted from the first update", steps[i])
        blocks = blocks_of(parameter.numel(), OPTIMIZER_BLOCKSIZE)
        for argument, values, scale in kinds:
            state = values[i]
            if (
                state.dtype is not (torch.float32 if scale else state_dtype)
                or (state.numel() != blocks if scale else state.shape != shape)
                or not state.is_contiguous()
                or state.device != device
            ):
                _explain_state(f"{argument}[{i}]", state, parameter, state_dtype, scale=scale)


def _explain_state(
    argument: str, state: Tensor, p: Tensor, dtype: torch.dtype, *, scale: bool
) -> None:
    if scale:
        _dtype(argument, state, torch.float32)
        blocks = blocks_of(p.numel(), OPTIMIZER_BLOCKSIZE)
        _numel(argument, state, blocks, f"one per {OPTIMIZER_BLOCKSIZE} elements")
    else:
        _dtype(argument, state, dtype)
        _shape(argument, state, p.shape)
    _same_device(p, **{argument: state})
    raise error(argument, "a contiguous tensor", f"strides {state.stride()}")


@operation(
    "optimizer_update_32bit(str optimizer_name, Tensor[] g, Tensor(a!)[] p, Tensor(b!)[] state1, "
    "Tensor(c!)[] state2, int[] step, float lr, float beta1, float beta2, float beta3, "
    "float alpha, float eps, float weight_decay, float gnorm_scale=1.0, bool skip_zeros=False) "
    "-> ()"
)
def optimizer_update_32bit(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
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
) -> None:
    """Update the parameters ``p`` and their float32 states in place, the whole list at once."""
    states = {"state1": state1, "state2": state2}
    _check_update(optimizer_name, g, p, step, states, torch.float32)


@operation(
    "optimizer_update_8bit_blockwise(str optimizer_name, Tensor[] g, Tensor(a!)[] p, "
    "Tensor(b!)[] state1, Tensor(c!)[] state2, Tensor qmap1, Tensor qmap2, "
    "Tensor(d!)[] absmax1, Tensor(e!)[] absmax2, int[] step, float lr, float beta1, float beta2, "
    "float beta3, float alpha, float eps, float weight_decay, float gnorm_scale=1.0, "
    "bool skip_zeros=False) -> ()"
)
def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: Sequence[Tensor],
    p: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor],
    qmap1: Tensor,
    qmap2: Tensor,
    absmax1: Sequence[Tensor],
    absmax2: Sequence[Tensor],
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
) -> None:
    """Like ``optimizer_update_32bit``, with uint8 states in blocks of 256 and their absmax."""
    states = {"state1": state1, "state2": state2, "absmax1": absmax1, "absmax2": absmax2}
    _check_update(optimizer_name, g, p, step, states, torch.uint8)
    _code("qmap1", qmap1)
    _code("qmap2", qmap2)
    if p:
        _same_device(p[0], qmap1=qmap1, qmap2=qmap2)


def register(name: str, kernel: Callable[..., Any], dispatch_key: str) -> None:
    """Register ``kernel`` for ``bnbx::<name>``, with the contract's checks in front of it."""
    contract = CONTRACTS[name]

    @functools.wraps(kernel)
    def checked(*args: Any, **kwargs: Any) -> Any:
        return kernel(contract(*args, **kwargs), *args, **kwargs)

    LIBRARY.impl(name, checked, dispatch_key)
