"""What the benchmarks share: fresh data and threads."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.codebooks import create_dynamic_map

if TYPE_CHECKING:
    from pathlib import Path

#: Rows and columns of the weights: one projection of a 7B model, 32 MiB in 16 bit.
SIZE = 4096
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
#: Rows of activations: one token, a small batch, a large one, a prompt.
ROW_COUNTS = (1, 8, 64, 512)
#: Parameters that the optimizers update, as (count, elements of each): one large, many small.
PARAMETERS = ((1, 2**24), (300, 50_000))
#: Arguments of the optimizer operations that the speed does not depend on.
HYPERPARAMETERS = {
    "lr": 1e-4,
    "beta1": 0.9,
    "beta2": 0.999,
    "beta3": 0.0,
    "alpha": 0.0,
    "eps": 1e-8,
    "weight_decay": 0.01,
}


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return fresh normally distributed values."""
    return torch.randn(shape).to(dtype)


def activations(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return normal values with a thousandth of the columns far out, the case of LLM.int8()."""
    values = torch.randn(shape)
    values[:, torch.randperm(shape[1])[: shape[1] // 1000]] *= 20
    return values.to(dtype)


def int8(*shape: int) -> Tensor:
    """Return fresh int8 codes."""
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def stats(count: int) -> Tensor:
    """Return fresh row or column scales: float32 in [0.5, 1.5)."""
    return torch.rand(count) + 0.5


def weight_4bit(*shape: int, nested: bool) -> dict[str, Any]:
    """Return a fresh NF4 weight as the arguments that the products with one take."""
    packed, absmax = torch.ops.bnbx.quantize_4bit(normal(*shape), 64, "nf4", torch.uint8)
    weight = {"B": packed, "shapeB": shape, "absmax": absmax, "blocksize": 64, "quant_type": "nf4"}
    if not nested:
        return weight
    code, offset = create_dynamic_map(), absmax.mean()
    absmax_8bit, absmax = torch.ops.bnbx.quantize_blockwise(absmax - offset, code, 256)
    scales = {"absmax_8bit": absmax_8bit, "absmax_code": code, "absmax_offset": offset}
    return {**weight, "absmax": absmax, **scales}


def write_report(report: Any, rows: str, file: Path) -> None:
    """Write a dataclass as JSON, each of its ``rows`` to a line; the folder is made."""
    content = dataclasses.asdict(report)
    lines = ",\n".join(json.dumps(row) for row in content.pop(rows))
    head = json.dumps(content, indent=1).removesuffix("\n}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{head},\n "{rows}": [\n{lines}\n]}}\n')


def set_threads(threads: int) -> None:
    """Give torch and every library that shares its OpenMP runtime ``threads`` threads."""
    torch.set_num_threads(threads)


def default_threads() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
