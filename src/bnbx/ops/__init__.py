"""The contract of every operation: its schema, its argument checks and the outputs it allocates.

Each operation is one function, in the module of its family. It checks its arguments, raises
``ValueError`` naming the one that is wrong, and returns empty outputs of the right shape and dtype.
That makes it three things at once: the fake kernel for ``torch.compile`` and ``torch.export``, the
check that runs before any kernel sees a pointer, and the allocation that the kernel fills.
``backends/`` supplies the kernels.
"""

from __future__ import annotations

from bnbx.codebooks import QUANT_TYPES_4BIT
from bnbx.ops import blockwise, four_bit, int8, optimizers, quantiles
from bnbx.ops.checks import (
    BLOCKSIZES_4BIT,
    FLOAT_DTYPES,
    blocks_of,
    check_4bit_type,
    packed_bytes,
)
from bnbx.ops.contract import CONTRACTS, LIBRARY, error, operation, register
from bnbx.ops.int8 import MAX_INT8_DEPTH, Int8Quantized
from bnbx.ops.optimizers import (
    LIVE_NUMBERS,
    OPTIMIZER_BLOCKSIZE,
    OPTIMIZER_BLOCKSIZES,
    OPTIMIZERS,
    RULES,
    OptimizerState,
    OptimizerUpdate,
    codes_shape,
    state_shape,
)

__all__ = [
    "BLOCKSIZES_4BIT",
    "CONTRACTS",
    "FLOAT_DTYPES",
    "LIBRARY",
    "LIVE_NUMBERS",
    "MAX_INT8_DEPTH",
    "OPTIMIZERS",
    "OPTIMIZER_BLOCKSIZE",
    "OPTIMIZER_BLOCKSIZES",
    "QUANT_TYPES_4BIT",
    "RULES",
    "Int8Quantized",
    "OptimizerState",
    "OptimizerUpdate",
    "blocks_of",
    "blockwise",
    "check_4bit_type",
    "codes_shape",
    "error",
    "four_bit",
    "int8",
    "operation",
    "optimizers",
    "packed_bytes",
    "quantiles",
    "register",
    "state_shape",
]
