"""The checks that contracts are made of; each raises ``ValueError`` naming the argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnbx.codebooks import QUANT_TYPES_4BIT
from bnbx.ops.contract import error, wrong_device

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: What may hold packed 4-bit codes: ``quant_storage``.
STORAGE_DTYPES = (torch.uint8, *FLOAT_DTYPES)
BLOCKSIZES_4BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def blocks_of(numel: int, blocksize: int) -> int:
    """Return the number of blocks, the last one possibly partial."""
    return -(-numel // blocksize)


def packed_bytes(numel: int) -> int:
    """Return the bytes that ``numel`` 4-bit codes take."""
    return -(-numel // 2)


def _wrong_dtype(argument: str, tensor: Tensor, *allowed: torch.dtype) -> ValueError:
    return error(argument, f"dtype {' or '.join(str(d) for d in allowed)}", tensor.dtype)


def _wrong_shape(argument: str, tensor: Tensor, expected: Sequence[int]) -> ValueError:
    return error(argument, f"shape {tuple(expected)}", tuple(tensor.shape))


def _wrong_numel(argument: str, tensor: Tensor, expected: int, why: str) -> ValueError:
    return error(argument, f"{expected} elements ({why})", tensor.numel())


def check_dtype(argument: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Raise unless the tensor has one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        raise _wrong_dtype(argument, tensor, *allowed)


def check_output_dtype(argument: str, dtype: torch.dtype) -> None:
    """Raise unless results can have this dtype."""
    if dtype not in FLOAT_DTYPES:
        raise error(argument, "torch.float32, torch.float16 or torch.bfloat16", dtype)


def check_shape(argument: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Raise unless the tensor has the expected shape."""
    if tensor.shape != tuple(expected):
        raise _wrong_shape(argument, tensor, expected)


def check_numel(argument: str, tensor: Tensor, expected: int, why: str) -> None:
    """Raise unless the tensor has the expected number of elements; say why that many."""
    if tensor.numel() != expected:
        raise _wrong_numel(argument, tensor, expected, why)


def check_entries(
    argument: str, tensor: Tensor, dtype: torch.dtype, expected: int, why: str
) -> None:
    """``check_dtype`` and ``check_numel`` in one call, for the operations that are called often."""
    if tensor.dtype is not dtype:
        raise _wrong_dtype(argument, tensor, dtype)
    if tensor.numel() != expected:
        raise _wrong_numel(argument, tensor, expected, why)


def check_device(first: Tensor, **others: Tensor | None) -> None:
    """Raise unless the other tensors are on the first one's device."""
    device = first.device
    for argument, tensor in others.items():
        if tensor is not None and tensor.device != device:
            raise wrong_device(argument, tensor, device)


def check_vector(argument: str, tensor: Tensor, dtype: torch.dtype, length: int) -> None:
    """``check_dtype`` and ``check_shape`` of a vector in one call, likewise."""
    if tensor.dtype is not dtype:
        raise _wrong_dtype(argument, tensor, dtype)
    if tensor.shape != (length,):
        raise _wrong_shape(argument, tensor, (length,))


def check_matrix(argument: str, tensor: Tensor) -> None:
    """Raise unless the tensor has 2 dimensions."""
    if tensor.dim() != 2:
        raise error(argument, "2 dimensions", f"shape {tuple(tensor.shape)}")


def check_positive(argument: str, value: int) -> None:
    """Raise unless the value is above 0."""
    if value <= 0:
        raise error(argument, "a positive number", value)


def check_4bit_type(blocksize: int, quant_type: str) -> None:
    """Raise ``ValueError`` unless the blocksize and the 4-bit type exist."""
    if blocksize not in BLOCKSIZES_4BIT:
        raise error("blocksize", f"one of {BLOCKSIZES_4BIT}", blocksize)
    if quant_type not in QUANT_TYPES_4BIT:
        raise error("quant_type", f"one of {QUANT_TYPES_4BIT}", repr(quant_type))


def check_code(argument: str, code: Tensor) -> None:
    """Raise unless the tensor is a codebook of 256 entries."""
    check_vector(argument, code, torch.float32, 256)


def check_ascending(argument: str, code: Tensor) -> None:
    """Raise unless the codebook's entries are in order; reads them, so contracts do not call it.

    While a CUDA graph is captured nothing can be read, and the check is left out.
    """
    if code.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not bool((code[1:] >= code[:-1]).all()):
        raise error(
            argument, f"{len(code)} ascending entries", "entries out of order", "Sort the codebook."
        )


def read_offsets(offsets: Tensor, rows: int) -> list[int]:
    """Return the rows at which groups end; reads them, so contracts do not call it.

    Raise unless they are ascending and from 0 to the number of rows.
    """
    ends: list[int] = offsets.tolist()
    before = 0
    for end in ends:
        if not before <= end <= rows:
            raise error("offsets", f"ascending numbers from 0 to {rows}, A's rows", ends)
        before = end
    return ends


def check_packed_4bit(argument: str, packed: Tensor, numel: int) -> None:
    """Raise unless the tensor holds the packed codes of ``numel`` elements."""
    got, expected = packed.numel() * packed.element_size(), packed_bytes(numel)
    # quant_storage wider than a byte rounds the last element up; nothing may be missing, and more
    # than one storage element to spare means that the shape is not the one that was quantized.
    if got != expected and not expected < got < expected + packed.element_size():
        raise error(
            argument,
            f"{expected} bytes of packed codes for {numel} elements",
            f"{got} bytes",
            "The weight and its quantization state do not belong together.",
        )


def check_out(out: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise unless a kernel can write a result of this shape and dtype into ``out``."""
    check_dtype("out", out, dtype)
    check_shape("out", out, shape)
    if not out.is_contiguous():
        raise error("out", "a contiguous tensor", f"strides {out.stride()}")
