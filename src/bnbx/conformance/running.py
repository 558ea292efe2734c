"""Runs the cases on a device and says what came out."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bnbx.backends import BACKENDS
from bnbx.conformance.expected import Deviation, deviation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bnbx.conformance.cases import Case


@dataclasses.dataclass
class Row:
    """What came out of the cases of one operation and kind.

    Attributes
    ----------
    operation, kind
        As the cases have them.
    backend
        Who serves the operation on the device.
    cases
        How many calls there were.
    error
        The largest error, relative to the largest value of its result.
    share
        The largest one as a share of what is allowed.
    failures
        Which calls failed, and how.
    """

    operation: str
    kind: str
    backend: str
    cases: int = 0
    error: float = 0.0
    share: float = 0.0
    failures: list[str] = dataclasses.field(default_factory=list)


def run(
    every: Iterable[Case], device: str, advance: Callable[[int, str], None] = lambda *_: None
) -> list[Row]:
    """Run the cases on a device, on a CPU once for each of its instruction sets.

    Parameters
    ----------
    every
        The cases.
    device
        The torch device.
    advance
        Called with 1 and the name of the operation, at each case.
    """
    rows: dict[tuple[str, str], Row] = {}
    serving = {name: backend_of(name, torch.device(device).type) for name in _operations()}
    for case in every:
        advance(1, case.operation)
        key = case.operation, case.kind
        row = rows.setdefault(key, Row(*key, serving[case.operation]))
        for isa in instruction_sets(device):
            row.cases += 1
            worst, error = _worst_of(case, device)
            row.share, row.error = max(row.share, worst.share), max(row.error, error)
            if worst.share > 1.0:
                how = f"{isa}: " if isa else ""
                row.failures.append(f"{how}{case.what}: {worst.where}")
    order = list(_operations())
    return sorted(rows.values(), key=lambda row: order.index(row.operation))


def _operations() -> tuple[str, ...]:
    return BACKENDS[-1].operations


def backend_of(operation: str, device_type: str) -> str:
    """Return the name of the backend that serves an operation on a type of device."""
    for backend in BACKENDS:
        if backend.device_type == device_type and operation in backend.operations:
            return backend.name
    return BACKENDS[-1].name


def instruction_sets(device: str) -> Iterator[str]:
    """Choose each of the instruction sets of the device in turn; "" where there is no choice."""
    cpu = next((b for b in BACKENDS if b.device_type == "cpu" and b.operations), None)
    if device != "cpu" or cpu is None or "available_isas" not in cpu.details:
        yield ""
        return
    ext: Any = importlib.import_module(f"bnbx._ext._{cpu.name}")
    chosen = ext.describe()["isa"]
    try:
        for isa in cpu.details["available_isas"]:
            ext.select_isa(isa)
            yield isa
    finally:
        ext.select_isa(chosen)


def _worst_of(case: Case, device: str) -> tuple[Deviation, float]:
    """Return the worst deviation of a case, and the largest error; an exception is infinite."""
    try:
        found = call_on(case, device)
    except Exception as failure:  # noqa: BLE001 (whatever a kernel raises is what is reported)
        return Deviation(math.inf, math.inf, f"{type(failure).__name__}: {failure}"), math.inf
    deviations = [deviation(output, found) for output in case.outputs]
    written = {name for output in case.outputs for name in output.names}
    for name, before in _tensors(case.call):
        if name not in written and not _is_same(found[name], before):
            deviations.append(Deviation(math.inf, math.inf, f"{name} has been changed"))
    return max(deviations), max(each.error for each in deviations)


def call_on(case: Case, device: str) -> dict[str, Tensor | None]:
    """Return what a call on a device has given, and its arguments afterwards, on the CPU."""
    call = tree_map_only(Tensor, lambda t: placed(t, device), case.call)
    operation = getattr(torch.ops.bnbx, case.operation.partition(".")[0])
    result = operation(**call)
    results = result if isinstance(result, tuple) else (result,)
    found: dict[str, Tensor | None] = {name: tensor.cpu() for name, tensor in _tensors(call)}
    for i, each in enumerate(results):
        found[f"result[{i}]" if i else "result"] = None if each is None else each.cpu()
    return found


def _tensors(call: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Return the name and value of each tensor among the arguments, also of those in lists."""
    for name, value in call.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}[{i}]", t) for i, t in enumerate(value) if isinstance(t, Tensor))


def _is_same(found: Tensor | None, before: Tensor) -> bool:
    return found is not None and torch.equal(found.nan_to_num(7.0), before.nan_to_num(7.0))


def placed(tensor: Tensor, device: str) -> Tensor:
    """Return a copy on a device, with the strides of the tensor and its place in a storage."""
    end = tensor.storage_offset() + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    count = end + 1 if tensor.numel() else tensor.storage_offset()
    memory = tensor.as_strided((count,), (1,), 0).to(device, copy=True)
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
