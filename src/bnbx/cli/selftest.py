"""``bnbx selftest``: whether the operations of the installed package are right on a device."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from typing import TYPE_CHECKING, Any

import torch

from bnbx import conformance
from bnbx.backends import BACKENDS
from bnbx.ops import error
from bnbx.progress import Progress
from bnbx.table import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from bnbx.conformance import Row

HELP = "run the conformance tests of the installed package on a device"
#: Failures that are shown of an operation and dtype.
SHOWN = 3


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--device",
        action="append",
        help="torch device, such as cuda, xpu, mps or cpu; may be repeated; default: the CPU and, "
        "if there is one, the accelerator",
    )
    parser.add_argument("--quick", action="store_true", help="about half of the cases")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="operations whose name has this in it; may be repeated",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module first that registers a backend; may be repeated",
    )


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return what came out on each device, and as text."""
    for module in options.modules:
        importlib.import_module(module)
    devices = options.device or _default_devices()
    for device in devices:
        _check_device(device)
    chosen = [
        case
        for case in conformance.cases(quick=options.quick)
        if not options.only or any(text in case.operation for text in options.only)
    ]
    if not chosen:
        raise error("--only", "a part of the name of an operation", options.only)
    results = {}
    for device in devices:
        with Progress(len(chosen), device, "case", show=True) as progress:
            results[device] = conformance.run(chosen, device, progress.advance)
    failures = sum(len(row.failures) for row in itertools.chain(*results.values()))
    report = {
        "failures": failures,
        "devices": {name: [dataclasses.asdict(r) for r in rows] for name, rows in results.items()},
    }
    return report, "\n\n".join(_text(device, rows) for device, rows in results.items())


def _default_devices() -> list[str]:
    found = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if found is None else ["cpu", found.type]


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as failure:
        reason = str(failure).partition("\n")[0]
        raise error(
            "--device", "a device that this torch can use", f"{device!r}: {reason}"
        ) from None


def _text(device: str, rows: Iterable[Row]) -> str:
    rows = list(rows)
    head = ("operation", "dtype", "by", "cases", "error", "of allowed", "result")
    lines = [head, *map(_line, rows)]
    failed = sorted({row.operation for row in rows if row.failures})
    count = sum(row.cases for row in rows)
    verdict = f"{device}: {count} cases, " + (
        f"FAILED: {', '.join(failed)}" if failed else "all right"
    )
    return "\n".join([_title(device), "", table(lines, 3), "", *_details(rows), verdict])


def _title(device: str) -> str:
    of_type = [b for b in BACKENDS if b.device_type == torch.device(device).type]
    names = []
    for backend in of_type:
        isas = ", ".join(backend.details.get("available_isas", ()))
        what = f"not loaded: {backend.reason}" if backend.reason else isas
        names.append(f"{backend.name} ({what})" if what else backend.name)
    return f"{device}, served by " + ", ".join([*names, BACKENDS[-1].name])


def _line(row: Row) -> tuple[str, ...]:
    numbers = (str(row.cases), f"{row.error:.1e}" if row.error else "0", f"{row.share:.2f}")
    result = f"FAILED {len(row.failures)}" if row.failures else "ok"
    return (row.operation, row.kind, row.backend, *numbers, result)


def _details(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        lines += [f"{row.operation}, {row.kind}: {what}" for what in row.failures[:SHOWN]]
        if len(row.failures) > SHOWN:
            lines.append(f"{row.operation}, {row.kind}: and {len(row.failures) - SHOWN} more")
    return [*lines, ""] if lines else []
