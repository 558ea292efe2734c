"""Calls of every operation: odd sizes, empty tensors, every dtype, blocksize and rule."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx import codebooks
from bnbx.backends import reference
from bnbx.conformance import expected
from bnbx.conformance.samples import SIGNED, UNSIGNED, update_32bit, update_blockwise
from bnbx.ops import BLOCKSIZES_4BIT, FLOAT_DTYPES, OPTIMIZERS, QUANT_TYPES_4BIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Inputs = Iterator[tuple[str, Tensor, int, str]]

SEED = 20_240_707
#: Nothing, less than a vector, partial vectors and blocks.
SIZES = (0, 1, 2, 17, 63, 64, 65, 1001, 20_001)
QUICK_SIZES = (0, 63, 1001)
NOT_FINITE = (math.nan, math.inf, -math.inf)
#: (M, N, K): below and above the tiles of kernels, rows that begin in the middle of a byte or of a
#: block, nothing.
SHAPES = (
    *((0, 5, 70), (1, 5, 70), (2, 0, 64), (3, 7, 1), (4, 33, 257), (5, 6, 192), (9, 70, 128)),
    *((17, 130, 300), (33, 16, 515), (70, 65, 320), (1, 70, 2051), (130, 9, 64), (200, 33, 192)),
)
QUICK_SHAPES = (SHAPES[1], SHAPES[3], SHAPES[5], SHAPES[7], SHAPES[10])
#: Rows of each of a stack of weights, and those behind the last one.
GROUPS = ((1,), (0, 3, 0, 4, 2), (17, 1, 0, 33, 1))
PARAMETERS = ((), (0,), (7,), (3, 5, 7), (257,), (4501,))
#: What an update is changed by, beside the rule.
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 0.0, "gnorm_scale": -0.25},
    {"max_unorm": 1e-3},
    {"max_unorm": 0.1, "skip_zeros": True},
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an operation on tensors of the CPU.

    Attributes
    ----------
    operation
        Its name.
    kind
        The dtype of the values that are not codes; of int8 codes, if there are no others.
    what
        What is special about it.
    call
        The arguments by name. A call of an optimizer changes them, so copy them.
    outputs
        What it has to give.
    """

    operation: str
    kind: str
    what: str
    call: dict[str, Any]
    outputs: list[expected.Output]


def cases(*, quick: bool = False) -> Iterator[Case]:
    """Return the cases of every operation, the same ones each time; ``quick``: some of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for family in (_four_bit, _products_4bit, _grouped, _blockwise, _int8, _quantiles):
            for dtype in FLOAT_DTYPES:
                yield from family(dtype, quick)
        for dtype in FLOAT_DTYPES:
            yield from _optimizers(dtype, quick)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _values(size: int | tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Return normal values whose magnitude changes from place to place."""
    x = torch.randn(size) * scale
    return (x * torch.rand_like(x).add(0.5)).to(dtype)


def _inputs(dtype: torch.dtype, quick: bool) -> Inputs:
    """Return what is to be quantized: its name, values, the blocksize and the 4-bit type."""
    for size in QUICK_SIZES if quick else SIZES:
        yield f"{size} elements", _values(size, dtype), 64, "nf4"
    every = itertools.product(BLOCKSIZES_4BIT, QUANT_TYPES_4BIT)
    for blocksize, quant_type in itertools.islice(every, 0, None, 5 if quick else 1):
        name = f"{quant_type} in blocks of {blocksize}"
        yield name, _values(blocksize + 21, dtype), blocksize, quant_type
    for bad in NOT_FINITE[:: 2 if quick else 1]:
        A = _values(199, dtype)
        A[100] = bad
        yield f"a block with {bad}", A, 64, "nf4"
    info = torch.finfo(dtype)
    for name, scale in (("zeros", 0.0), ("denormals", info.tiny / 8), ("huge", info.max / 2)):
        A = torch.cat([_values(64, dtype), torch.rand(37).mul(2).sub(1).mul(scale).to(dtype)])
        yield f"a block of {name}", A, 64, "fp4"
    yield "a transposed matrix", _values((33, 47), dtype).t(), 64, "nf4"
    yield "a slice that begins anywhere", _values(300, dtype)[1:], 64, "nf4"


def _four_bit(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    storages = itertools.cycle((torch.uint8, *FLOAT_DTYPES))
    case = functools.partial(_exact_case, kind=_name(dtype))
    for what, A, blocksize, quant_type in _inputs(dtype, quick):
        how: dict[str, Any] = {"blocksize": blocksize, "quant_type": quant_type}
        stored = {**how, "quant_storage": next(storages)}
        packed, absmax = reference.quantize_4bit(A, **stored)
        signed = absmax * torch.tensor([1.0, -1.0])[torch.arange(absmax.numel()) % 2]
        yield case("quantize_4bit", what=what, call={"A": A, **stored})
        yield case("encode_4bit", what=what, call={"A": A, "absmax": signed, **stored})
        decode = {"A": packed, "absmax": signed, **how, "shape": list(A.shape), "dtype": dtype}
        yield case("dequantize_4bit", what=what, call=decode)
        out = torch.empty(A.shape, dtype=dtype)
        yield case("dequantize_4bit.out", what=what, call={**decode, "out": out})
        if blocksize <= 128:
            search = {"factors": [0.85, -0.9, 1.05], "refinements": 1, **how}
            importance = torch.rand(A.shape[-1]) if A.numel() > 64 else None
            call = {"A": A, "importance": importance, **search}
            yield case("scale_search_4bit", what=what, call=call)


def _exact_case(operation: str, kind: str, what: str, call: dict[str, Any]) -> Case:
    """Return a case whose results have to be the bits of the reference."""
    function = getattr(reference, operation.replace(".", "_"))
    if "out" in call:
        out = torch.empty_like(call["out"])
        function(**{**call, "out": out})
        return Case(operation, kind, what, call, [expected.Output(("out",), out)])
    result = function(**call)
    results = result if isinstance(result, tuple) else (result,)
    return Case(operation, kind, what, call, expected.same(*results))


def _weight(
    rows: int, K: int, blocksize: int, quant_type: str, nested_blocksize: int | None
) -> dict[str, Any]:
    """Return the arguments that describe a weight of random codes and scales."""
    blocks = -(-rows * K // blocksize)
    packed = torch.randint(256, (-(-rows * K // 2), 1), dtype=torch.uint8)
    state: dict[str, Any] = {"B": packed, "blocksize": blocksize, "quant_type": quant_type}
    if nested_blocksize is None:
        return {**state, "absmax": torch.rand(blocks) + 0.1}
    return {
        **state,
        "absmax": torch.rand(-(-blocks // nested_blocksize)) + 0.1,
        "absmax_8bit": torch.randint(256, (blocks,), dtype=torch.uint8),
        "absmax_code": SIGNED,
        "absmax_offset": torch.tensor(0.7),
        "absmax_blocksize": nested_blocksize,
    }


def _products_4bit(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    how = itertools.cycle(itertools.product((64, 32, 4096, 128, 256, 512, 1024, 2048), (None, 256)))
    types = itertools.cycle(QUANT_TYPES_4BIT)
    for M, N, K in QUICK_SHAPES if quick else SHAPES:
        for _ in range(2):
            blocksize, nested = next(how)
            state = {**_weight(N, K, blocksize, next(types), nested), "shapeB": [N, K]}
            what = f"M={M} N={N} K={K}, blocks of {blocksize}" + (", nested" if nested else "")
            A, G = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
            bias = torch.randn(N).to(dtype) if nested else None
            yield from _both_products("gemm_4bit", dtype, what, A, G, {**state, "bias": bias})
    for bad in NOT_FINITE[:1] if quick else NOT_FINITE:
        A, G = torch.randn(3, 128).to(dtype), torch.randn(3, 9).to(dtype)
        state = {**_weight(9, 128, 64, "nf4", None), "shapeB": [9, 128]}
        A[1, 33] = G[1, 3] = bad
        yield from _both_products("gemm_4bit", dtype, f"{bad} in a row", A, G, state)
    A, G = torch.randn(3, 128).to(dtype), torch.randn(3, 9).to(dtype)
    state = {**_weight(9, 128, 64, "nf4", None), "shapeB": [9, 128]}
    state["absmax"][3] = math.nan
    yield from _both_products("gemm_4bit", dtype, "nan in a block", A, G, state)


def _grouped(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    shapes = ((5, 70), (33, 65), (130, 64), (70, 192))
    for (rows, (N, K)), nested in zip(
        itertools.product(GROUPS, shapes[:2] if quick else shapes), itertools.cycle((None, 256))
    ):
        E, M = len(rows), sum(rows) + 2
        offsets = torch.tensor([*itertools.accumulate(rows)], dtype=torch.int32)
        if nested:
            offsets = offsets.long()
        state = {**_weight(E * N, K, 64, "nf4", nested), "shapeB": [E, N, K], "offsets": offsets}
        A, G = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
        what = f"{rows} rows, N={N} K={K}" + (", nested" if nested else "")
        bias = torch.randn(E, N).to(dtype) if nested else None
        yield from _both_products("gemm_4bit_grouped", dtype, what, A, G, {**state, "bias": bias})


def _both_products(
    operation: str, dtype: torch.dtype, what: str, A: Tensor, G: Tensor, state: dict[str, Any]
) -> Iterator[Case]:
    """Return a product with a weight and one with its transpose."""
    call = {"A": A, **state}
    yield Case(operation, _name(dtype), what, call, expected.product_4bit(call))
    call = {"A": G, **state}
    call.pop("bias", None)
    outputs = expected.product_4bit(call, transposed=True)
    yield Case(f"{operation}_transposed", _name(dtype), what, call, outputs)


def _blockwise(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    maps = {
        "signed": SIGNED,
        "unsigned": UNSIGNED,
        "linear": codebooks.create_linear_map(),
        "fp8": codebooks.create_fp8_map(),
        "normal": codebooks.create_normal_map(),
    }
    codes = itertools.cycle(maps.items())
    for what, A, blocksize, _ in _inputs(dtype, quick):
        name, code = next(codes)
        how: dict[str, Any] = {"code": code, "blocksize": blocksize if blocksize > 32 else 7}
        case = functools.partial(_exact_case, kind=_name(dtype), what=f"{what}, {name} map")
        yield case("quantize_blockwise", call={"A": A, **how})
        encoded, absmax = reference.quantize_blockwise(A, **how)
        decode = {"A": encoded, "absmax": absmax, **how, "dtype": dtype}
        yield case("dequantize_blockwise", call=decode)
        out = torch.empty(A.shape, dtype=dtype)
        yield case("dequantize_blockwise.out", call={**decode, "out": out})


def _int8(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    exact = functools.partial(_exact_case, kind=_name(dtype))
    codes = functools.partial(_exact_case, kind="int8")
    every = itertools.cycle((0.0, 6.0, math.inf, 1.0))
    for (M, N, K), threshold in zip(QUICK_SHAPES if quick else SHAPES, every, strict=False):
        what = f"M={M} N={N} K={K}, threshold {threshold}"
        A, W, bias = _values((M, K), dtype, 2.0), torch.randn(N, K), torch.randn(N).to(dtype)
        yield exact("int8_vectorwise_quant", what=what, call={"A": A, "threshold": threshold})
        yield exact("int8_double_quant", what=what, call={"A": A, "threshold": threshold})
        CA, SCA, columns = reference.int8_vectorwise_quant(A, threshold)
        CB, SCB, _ = reference.int8_vectorwise_quant(W)
        if dtype is torch.float32:
            yield codes("int8_vectorwise_dequant", what=what, call={"A": CA, "stats": SCA})
            yield codes("int8_linear_matmul", what=what, call={"A": CA, "B": CB})
            out = torch.empty(M, N, dtype=torch.int32)
            yield codes("int8_linear_matmul.out", what=what, call={"A": CA, "B": CB, "out": out})
        yield from _scaled(dtype, what, A, (CA, CB, SCA, SCB), columns, bias, threshold)
    for bad in NOT_FINITE[:1] if quick else NOT_FINITE:
        A = _values((5, 70), dtype)
        A[2, 33] = bad
        for operation, threshold in itertools.product(("vectorwise", "double"), (0.0, 2.0)):
            call = {"A": A, "threshold": threshold}
            yield exact(f"int8_{operation}_quant", what=f"a row with {bad}", call=call)


def _scaled(
    dtype: torch.dtype,
    what: str,
    A: Tensor,
    quantized: tuple[Tensor, Tensor, Tensor, Tensor],
    columns: Tensor | None,
    bias: Tensor,
    threshold: float,
) -> Iterator[Case]:
    """Return the products of int8 codes whose results are in floating point."""
    CA, CB, SCA, SCB = quantized
    sums, kind = reference.int8_linear_matmul(CA, CB), _name(dtype)
    stats: dict[str, Any] = {"row_stats": SCA, "col_stats": SCB, "dtype": dtype, "bias": bias}
    outputs = expected.scaled_sums(sums, SCA, SCB, bias)
    yield Case("int8_mm_dequant", kind, what, {"A": sums, **stats}, outputs)
    yield Case("int8_scaled_mm", kind, what, {"A": CA, "B": CB, **stats}, outputs)
    mixed: dict[str, Any] = {"A": A, "CA": CA, "CB": CB, "SCA": SCA, "SCB": SCB}
    mixed |= {"outlier_cols": columns, "bias": bias}
    outputs = expected.mixed_product(**mixed)
    yield Case("int8_mixed_scaled_mm", kind, what, mixed, outputs)
    linear = {"A": A, "CB": CB, "SCB": SCB, "threshold": threshold, "bias": bias}
    yield Case("int8_linear", kind, what, linear, outputs[:1])


def _quantiles(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    for size in (1, 256, 1001) if quick else (1, 2, 256, 1001, 20_001):
        for A in (torch.randn(size), torch.randn(size).exp(), torch.ones(size)):
            for offset, count in ((1 / 512, 256), (0.0, 2), (0.25, 17)):
                call: dict[str, Any] = {"A": A.to(dtype), "offset": offset, "num_quantiles": count}
                what = f"{count} of {size} elements"
                outputs = expected.quantiles(**call)
                yield Case("estimate_quantiles", _name(dtype), what, call, outputs)


def _optimizers(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    shapes = PARAMETERS[1:-1] if quick else PARAMETERS
    for optimizer, changed in itertools.product(OPTIMIZERS, CHANGES[:: 3 if quick else 1]):
        what = ", ".join([optimizer, *(f"{name}={value}" for name, value in changed.items())])
        for bits in (32, 8, 4):
            if bits == 32:
                name, call = "32bit", update_32bit(shapes, dtype, optimizer, **changed)
            else:
                name, call = (
                    "blockwise",
                    update_blockwise(bits, shapes, dtype, optimizer, **changed),
                )
            for g in call["g"][1:2]:
                g.flatten()[::3] = 0.0
            if dtype is torch.bfloat16:
                call |= _rounding(len(what) + bits, call["p"])
            expect: Callable[..., list[expected.Output]] = getattr(expected, f"update_{name}")
            note = f"{what}, {bits} bits"
            yield Case(f"optimizer_update_{name}", _name(dtype), note, call, expect(call))


def _rounding(number: int, p: list[Tensor]) -> dict[str, Any]:
    """Return one of the ways in which parameters of bfloat16 are rounded."""
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"seed": [7 + i for i, _ in enumerate(p)]},
        {"compensation": [torch.zeros_like(each) for each in p]},
    )
    return ways[number % 3]
