"""What an operation has to give, from the reference on the CPU, and how far off a result is.

Codes, scales and decoded values are the same bits on every device. Sums of products may be added up
in any order and from weights rounded to the dtype of the activations, so they are compared with
float64, and each with the error that its terms allow.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnbx.backends import reference
from bnbx.ops.checks import read_offsets

EPS = torch.finfo(torch.float32).eps


class Output(NamedTuple):
    """What one result, or one tensor that is written, has to hold.

    Attributes
    ----------
    names
        ``"result"``, ``"result[1]"`` or the name of an argument such as ``"p[0]"``. If there are
        more, their sum is meant.
    exact
        The value; NaN and infinities stand for anything that is not finite, unless it is exact.
    allowed
        How far off a value may be before it is rounded to its dtype. None: the same bits.
    few
        Whether, instead, one in a thousand may be another: codes of values at a boundary.
    between
        Whether ``allowed`` is the way to the ends of an interval, and not an error.
    """

    names: tuple[str, ...]
    exact: Tensor | None
    allowed: Tensor | float | None = None
    few: bool = False
    between: bool = False


class Deviation(NamedTuple):
    """How far off an output is.

    Attributes
    ----------
    share
        The largest error as a share of what is allowed: above 1 it is wrong.
    error
        The largest error, relative to the largest value.
    where
        Which output, how many of its values are wrong, and the worst one.
    """

    share: float
    error: float
    where: str


def deviation(output: Output, found: dict[str, Tensor | None]) -> Deviation:
    """Compare one output with what was found, on the CPU."""
    name, exact = " + ".join(output.names), output.exact
    parts = [part for part in map(found.get, output.names) if part is not None]
    if exact is None:
        return _wrong(f"{name} is a tensor, not None") if parts else Deviation(0.0, 0.0, name)
    if len(parts) < len(output.names):
        return _wrong(f"{name} is None")
    value = parts[0] if len(parts) == 1 else torch.stack([t.double() for t in parts]).sum(0)
    if value.shape != exact.shape:
        return _wrong(f"{name} has shape {tuple(value.shape)}, not {tuple(exact.shape)}")
    if output.allowed is None and value.dtype is not exact.dtype:
        return _wrong(f"{name} is {value.dtype}, not {exact.dtype}")
    if exact.numel() == 0:
        return Deviation(0.0, 0.0, name)
    shares = _shares(value, exact, output).flatten()
    i = int(shares.argmax())
    wrong = f"{int((shares > 1).sum())} of {shares.numel()} values are off"
    spot = f"{value.flatten()[i].item():.6g}, not {exact.flatten()[i].item():.6g}"
    error = 0.0 if output.allowed is None or output.between else _error(value, exact)
    return Deviation(float(shares[i]), error, f"{name}: {wrong}; at {i}: {spot}")


def _wrong(what: str) -> Deviation:
    return Deviation(math.inf, math.inf, what)


def _error(value: Tensor, exact: Tensor) -> float:
    finite = exact.isfinite() & value.isfinite()
    value, exact = value[finite].double(), exact[finite].double()
    largest = exact.abs().max().item() if exact.numel() else 0.0
    return (value - exact).abs().max().item() / largest if largest > 0.0 else 0.0


def _shares(value: Tensor, exact: Tensor, output: Output) -> Tensor:
    if output.allowed is None:
        differ = (value != exact) & ~(value.isnan() & exact.isnan())
        if not output.few:
            return torch.zeros(value.shape).masked_fill(differ, math.inf)
        return differ.double() * (int(differ.sum()) / max(1, differ.numel() // 1000))
    finite = exact.isfinite()
    info = torch.finfo(value.dtype)
    # Half the spacing of numbers around `exact`, and the smallest spacing of all.
    rounding = exact.abs().double() * (info.eps / 2) + info.smallest_normal * info.eps
    shares = (value.double() - exact.double()).abs() / ((rounding + output.allowed) * 1.001)
    shares = shares.where(finite, 0.0)
    return shares.masked_fill(finite != value.isfinite(), math.inf)


def same(*values: Tensor | None) -> list[Output]:
    """Return the outputs of an operation whose results have to be these."""
    names = ["result", *(f"result[{i}]" for i in range(1, len(values)))]
    return [Output((name,), value) for name, value in zip(names, values, strict=True)]


def product_4bit(call: dict[str, Any], *, transposed: bool = False) -> list[Output]:
    """Return what a product with a 4-bit weight, or with a stack of them, has to be."""
    A = call["A"].double()
    weights = _weight_4bit(call)
    if transposed:
        weights = weights.mT
    bias = call.get("bias")
    if "offsets" not in call:
        exact, allowed = _product(A, weights, bias, call["A"].dtype)
        return [Output(("result",), exact, allowed)]
    exact, allowed = (A.new_zeros(A.shape[0], weights.shape[1]) for _ in range(2))
    begin = 0
    for e, end in enumerate(read_offsets(call["offsets"], A.shape[0])):
        part, bias_e = slice(begin, end), None if bias is None else bias[e]
        exact[part], allowed[part] = _product(A[part], weights[e], bias_e, call["A"].dtype)
        begin = end
    return [Output(("result",), exact, allowed)]


def _weight_4bit(call: dict[str, Any]) -> Tensor:
    absmax, codes = call["absmax"], call.get("absmax_8bit")
    if codes is not None:
        nested = (codes.view(-1), absmax, call["absmax_code"], call["absmax_blocksize"])
        scales = reference.dequantize_blockwise(*nested, torch.float32) + call["absmax_offset"]
    else:
        scales = absmax
    how = (call["blocksize"], call["quant_type"], call["shapeB"], torch.float32)
    return reference.dequantize_4bit(call["B"], scales, *how).double()


def _product(
    A: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    exact = A @ weight.mT
    # Each term is rounded by itself, so the errors add up like a random walk: the 2-norm. So do
    # those of the sums after each term, which grow meanwhile: the root of the depth.
    norm = (A.square() @ weight.mT.square()).sqrt()
    sums = max(32.0, 2 * A.shape[-1] ** 0.5) * EPS
    allowed = norm * (torch.finfo(dtype).eps + sums)
    return exact if bias is None else exact + bias.double(), allowed


def scaled_sums(
    sums: Tensor, row_stats: Tensor, col_stats: Tensor, bias: Tensor | None
) -> list[Output]:
    """Return what the int32 sums of an int8 product mean, as ``int8_mm_dequant`` has it."""
    return [Output(("result",), *_scaled(sums, row_stats, col_stats, bias))]


def _scaled(
    sums: Tensor, row_stats: Tensor, col_stats: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows = row_stats.double().view(*sums.shape[:-1], 1)
    exact = sums.double() * rows * col_stats.double() / 127.0**2
    added = exact.new_zeros(()) if bias is None else bias.double()
    return exact + added, 8 * EPS * (exact.abs() + added.abs())


def mixed_product(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None,
    bias: Tensor | None,
) -> list[Output]:
    """Return the int8 product plus the outlier columns, and those columns."""
    exact, allowed = _scaled(CA.int() @ CB.int().mT, SCA, SCB, bias)
    columns = None
    if outlier_cols is not None:
        columns = A[:, outlier_cols]
        weight = CB.double()[:, outlier_cols] * SCB.double().unsqueeze(1) / 127.0
        exact = exact + columns.double() @ weight.mT
        norm = (columns.double().square() @ weight.mT.square()).sqrt()
        allowed = allowed + norm * (torch.finfo(A.dtype).eps + 32 * EPS) + 32 * EPS * exact.abs()
    return [Output(("result",), exact, allowed), Output(("result[1]",), columns)]


def quantiles(A: Tensor, offset: float, num_quantiles: int) -> list[Output]:
    """Return the middle between the neighbours of each quantile, and half their distance."""
    values = A.flatten().double().sort().values
    ranks = torch.linspace(offset, 1 - offset, num_quantiles, dtype=torch.float64)
    ranks = ranks * (A.numel() - 1)
    low = values[(ranks + 1e-9).floor().long()]
    high = values[(ranks - 1e-9).ceil().clamp(0).long()]
    size = torch.maximum(low.abs(), high.abs())
    slack = (0.0 if A.dtype is torch.bfloat16 else 1 / 128) + 1e-6
    allowed = (high - low).abs() / 2 + slack * size + 1e-37
    return [Output(("result",), (low + high) / 2, allowed, between=True)]


def update_32bit(call: dict[str, Any]) -> list[Output]:
    """Return parameters and states after an update of float32 states."""
    wide = _updated_in_float32(reference.optimizer_update_32bit, call)
    outputs = _parameters(call, wide)
    for name in ("state1", "state2"):
        for i, new in enumerate(wide[name]):
            g, p = (call[argument][i].double() for argument in ("g", "p"))
            terms = call[name][i].abs() + g.abs() + g * g + p.abs()
            allowed = 32 * EPS * (new.double().abs() + terms)
            outputs.append(Output((f"{name}[{i}]",), new.double(), allowed))
    return outputs


def update_blockwise(call: dict[str, Any]) -> list[Output]:
    """Return parameters, codes and scales after an update of states of codes."""
    wide = _updated_in_float32(reference.optimizer_update_blockwise, call)
    outputs = _parameters(call, wide)
    for i in range(len(call["p"])):
        for j in (1, 2):
            if call[f"state{j}"]:
                scales = wide[f"absmax{j}"][i].double()
                outputs.append(Output((f"state{j}[{i}]",), wide[f"state{j}"][i], few=True))
                outputs.append(Output((f"absmax{j}[{i}]",), scales, 16 * EPS * scales))
    return outputs


def _parameters(call: dict[str, Any], wide: dict[str, Any]) -> list[Output]:
    outputs = []
    for i, (old, new) in enumerate(zip(call["p"], wide["p"], strict=True)):
        exact = new.double()
        # A direction is a quotient of sums of terms of both signs, which may nearly cancel.
        size = old.double().abs() + (exact - old.double()).abs() + 2 * call["lr"] * 4
        allowed = 16 * EPS * (size + call["alpha"])
        names: tuple[str, ...] = (f"p[{i}]",)
        if call.get("seed") is not None:  # rounded up or down
            allowed = allowed + exact.abs() * torch.finfo(old.dtype).eps
        if call.get("compensation") is not None:
            names = (*names, f"compensation[{i}]")
            allowed = allowed + exact.abs() * torch.finfo(old.dtype).eps ** 2
        outputs.append(Output(names, exact, allowed))
    for i, norm in enumerate(wide["unorm_vec"]):
        outputs.append(Output((f"unorm_vec[{i}]",), norm.double(), 1e-5 * norm.double()))
    return outputs


def _updated_in_float32(update: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments after the update of parameters that are not rounded to their dtype."""
    wide = {
        name: [t.clone() for t in value] if name in _WRITTEN else value
        for name, value in call.items()
    }
    wide["p"] = [p.to(torch.float32, copy=True) for p in call["p"]]
    rest = wide.pop("compensation", None)
    if rest is not None:
        wide["p"] = [p + r.float() for p, r in zip(wide["p"], rest, strict=True)]
    wide.pop("seed", None)
    update(**wide)
    return wide


_WRITTEN = {"p", "state1", "state2", "absmax1", "absmax2", "unorm_vec"}
