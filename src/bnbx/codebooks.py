"""Code tables of the k-bit data types: the 16-entry 4-bit tables and the 256-entry 8-bit maps.

The 4-bit tables also stand in ``kernels/common/codebooks.h``, for the kernels; a test holds the two
together.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Quantiles of the standard normal distribution (Dettmers et al. 2023, QLoRA, appendix E).
NF4: tuple[float, ...] = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

#: Sign, two exponent bits, one mantissa bit; the index is the bit pattern. Divided by 12 on use.
FP4_TIMES_12: tuple[float, ...] = (
    *(0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0),
    *(0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0),
)

#: Yoshida 2023, "NF4 Isn't Information Theoretically Optimal", for blocks of 64; largest first.
AF4_BLOCKSIZE_64: tuple[float, ...] = (
    1.0,
    0.72424863,
    0.55496234,
    0.42563882,
    0.31675666,
    0.21961274,
    0.12934483,
    0.04273164,
    0.0,
    -0.04934812,
    -0.14982478,
    -0.25607552,
    -0.3736951,
    -0.51243739,
    -0.69441008,
    -1.0,
)

#: The 4-bit types that the kernels know, in the order of ``bnbx::QuantType``.
QUANT_TYPES_4BIT: tuple[str, ...] = ("nf4", "fp4")


@functools.cache
def _table_4bit(name: str) -> torch.Tensor:
    values: Sequence[float]
    if name == "nf4":
        values = NF4
    elif name == "fp4":
        values = FP4_TIMES_12
    elif name == "int4":
        values = [7, 6, 5, 4, 3, 2, 1, 0, 0, -1, -2, -3, -4, -5, -6, -7]
    else:
        values = AF4_BLOCKSIZE_64
    table = torch.tensor(values, dtype=torch.float32, device="cpu")  # whatever the default is
    return table / table.abs().max()


def get_4bit_type(
    typename: str, device: torch.device | str | None = None, blocksize: int = 64
) -> torch.Tensor:
    """Return the table of a 4-bit data type.

    Parameters
    ----------
    typename
        ``"nf4"``, ``"fp4"``, ``"int4"`` or ``"af4"``.
    device
        Where the table is put; the CPU by default.
    blocksize
        Elements per block. Only ``"af4"`` depends on it and exists for 64 alone.

    Returns
    -------
    torch.Tensor
        float32 of shape ``(16,)`` in [-1, 1]; entry ``i`` is the value of code ``i``.

    Raises
    ------
    NotImplementedError
        If the type is unknown or not defined for ``blocksize``.
    """
    if typename not in {"nf4", "fp4", "int4", "af4"}:
        msg = f"typename: expected 'nf4', 'fp4', 'int4' or 'af4', got {typename!r}"
        raise NotImplementedError(msg)
    if typename == "af4" and blocksize != 64:
        msg = f"blocksize: 'af4' is defined for 64 only, got {blocksize}"
        raise NotImplementedError(msg)
    return _table_4bit(typename).to(device or "cpu", copy=True)


def create_linear_map(
    signed: bool = True, total_bits: int = 8, add_zero: bool = True
) -> torch.Tensor:
    """Return evenly spaced values in [-1, 1] (or [0, 1]), with more zeros up to 256 entries.

    Parameters
    ----------
    signed
        Whether negative values are included.
    total_bits
        Bits per value, 1 to 8.
    add_zero
        Whether zero is one of the values, at the cost of one level when signed. Below 8 bits it
        always is.

    Returns
    -------
    torch.Tensor
        float32 of shape ``(256,)``, ascending.
    """
    count = 2**total_bits
    if signed and (add_zero or total_bits < 8):
        count -= 1
    values = torch.linspace(-1.0 if signed else 0.0, 1.0, count, device="cpu")
    gap = values.new_zeros(256 - values.numel())
    return torch.cat([values, gap]).sort().values


def create_normal_map(offset: float = 0.9677083, use_extra_value: bool = True) -> torch.Tensor:
    """Return the NormalFloat values: quantiles of N(0, 1), normalised to a maximum of 1.

    Parameters
    ----------
    offset
        Probability of the outermost quantile, in (0.5, 1).
    use_extra_value
        Eight positive values instead of seven, so that 16 codes with zero are used.

    Returns
    -------
    torch.Tensor
        float32 of shape ``(256,)``, ascending, zeros filling the middle.

    References
    ----------
    Dettmers et al. 2023, QLoRA, section 3.
    """

    def quantiles(count: int) -> torch.Tensor:
        probabilities = torch.linspace(offset, 0.5, count, device="cpu")[:-1].tolist()
        normal = statistics.NormalDist()
        return torch.tensor(
            [normal.inv_cdf(p) for p in probabilities], dtype=torch.float32, device="cpu"
        )

    positive = quantiles(9 if use_extra_value else 8)
    negative = -quantiles(8)
    zeros = positive.new_zeros(256 - positive.numel() - negative.numel())
    values = torch.cat([positive, zeros, negative]).sort().values
    return values / values.max()


def create_optimizer_map_4bit(signed: bool = True) -> torch.Tensor:
    """Return the values of a 4-bit optimizer state.

    Parameters
    ----------
    signed
        True for averages of the gradient: the dynamic map, which has a zero. False for averages of
        its square: sixteenths without zero, because their root is divided by.

    Returns
    -------
    torch.Tensor
        float32 of shape ``(16,)``, ascending.

    References
    ----------
    Li, Chen & Zhu 2023, "Memory Efficient Optimizers with 4-bit States", sections 3 and 4.
    """
    if signed:
        padded = create_dynamic_map(signed=True, max_exponent_bits=3, total_bits=4)
        return torch.cat([padded[:8], padded[-8:]])
    return torch.arange(1, 17, dtype=torch.float32, device="cpu") / 16.0


def create_fp8_map(
    signed: bool = True, exponent_bits: int = 5, precision_bits: int = 2, total_bits: int = 8
) -> torch.Tensor:
    """Return the values of a small floating-point format, normalised to a maximum of 1.

    Parameters
    ----------
    signed
        Whether one bit is the sign.
    exponent_bits, precision_bits
        Bits of exponent and fraction; with the sign they must add up to ``total_bits``.
    total_bits
        Bits per value, at most 8.

    Returns
    -------
    torch.Tensor
        float32 of shape ``(256,)``, ascending, zeros filling unused entries.

    Raises
    ------
    ValueError
        If the bits do not add up.
    """
    if exponent_bits + precision_bits + int(signed) != total_bits:
        msg = (
            f"total_bits: expected sign + exponent_bits + precision_bits = "
            f"{exponent_bits + precision_bits + int(signed)}, got {total_bits}"
        )
        raise ValueError(msg)
    bias = 2 ** (exponent_bits - 1)
    values: list[float] = []
    for exponent in range(2**exponent_bits):
        for fraction in range(2**precision_bits):
            mantissa = fraction / 2**precision_bits
            # The exponent field counts downwards: field 1 is the largest binade. Subnormals keep
            # the scale 2^-bias of the format's original definition.
            if exponent == 0:
                value = mantissa * 2.0**-bias
            else:
                value = (1.0 + mantissa) * 2.0 ** -(exponent - bias - 1)
            values += [value, -value] if signed else [value]
    values += [0.0] * (256 - len(values))
    code = torch.tensor(sorted(values), dtype=torch.float32, device="cpu")
    return code / code.max()


def create_dynamic_map(
    signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8
) -> torch.Tensor:
    """Return the dynamic tree data type: a decimal exponent in unary, the rest a linear fraction.

    Parameters
    ----------
    signed
        Whether negative values are included.
    max_exponent_bits
        Number of decades.
    total_bits
        Bits per value, at most 8.

    Returns
    -------
    torch.Tensor
        float32 of shape ``(256,)``, ascending, zeros filling unused entries.

    References
    ----------
    Dettmers 2016, "8-Bit Approximations for Parallelism in Deep Learning"; Dettmers et al. 2022,
    "8-bit Optimizers via Block-wise Quantization", section 2.
    """
    non_sign_bits = total_bits - 1
    data: list[float] = []

    def add_decade(exponent: int, boundaries: int) -> None:
        edges = torch.linspace(0.1, 1.0, boundaries, dtype=torch.float32, device="cpu")
        values = (math.pow(10, exponent) * ((edges[:-1] + edges[1:]) / 2.0)).tolist()
        data.extend(values)
        if signed:
            data.extend(-v for v in values)

    for i in range(max_exponent_bits):
        fraction_bits = i + non_sign_bits - max_exponent_bits + (0 if signed else 1)
        add_decade(i - max_exponent_bits + 1, int(2.0**fraction_bits) + 1)
    additional = 2 ** (non_sign_bits - max_exponent_bits) - 1
    if additional > 0:
        add_decade(0, additional + 1)
    data += [0.0, 1.0]
    data += [0.0] * (256 - len(data))
    return torch.tensor(sorted(data), dtype=torch.float32, device="cpu")
