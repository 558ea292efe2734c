"""The report behind ``bnbx info``."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import bnbx
from bnbx import ops
from bnbx.backends import BACKENDS
from bnbx.table import table

if TYPE_CHECKING:
    import argparse

HELP = "versions, backends and operations (the default)"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def run(_options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the report, and as text."""
    report = collect()
    return report, render(report)


def collect() -> dict[str, Any]:
    """Return versions, backends and the table of operations, as plain JSON values."""
    environment = {key: os.environ[key] for key in sorted(os.environ) if key.startswith("BNBX_")}
    return {
        "bnbx": bnbx.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "threads": torch.get_num_threads(),
        "environment": environment,
        "backends": [
            {
                "name": backend.name,
                "device": backend.device_type,
                "loaded": not backend.reason,
                "reason": backend.reason,
                **backend.details,
            }
            for backend in BACKENDS
        ],
        "operations": {
            name: [backend.name for backend in BACKENDS if name in backend.operations]
            for name in ops.CONTRACTS
        },
    }


def _backend_line(backend: dict[str, Any]) -> str:
    line = f"  {backend['name']:<10} device {backend['device']:<5}"
    if not backend["loaded"]:
        return f"{line} not loaded: {backend['reason']}"
    line += " loaded"
    if "isa" in backend:
        line += f", {backend['isa']} (available: {', '.join(backend['available_isas'])})"
    if "choice" in backend:
        line += f": {backend['choice']}"
    if "note" in backend:
        line += f"\n{'':13}{backend['note']}"
    return line


def render(report: dict[str, Any]) -> str:
    """Return the report as text for a terminal."""
    versions = ("bnbx", "torch", "numpy", "python")
    return "\n".join(
        [
            ", ".join(f"{name} {report[name]}" for name in versions),
            f"{report['platform']}, {report['threads']} threads",
            *(f"{key}={value}" for key, value in report["environment"].items()),
            "",
            "Backends",
            *map(_backend_line, report["backends"]),
            "",
            _operations(report),
        ]
    )


def _operations(report: dict[str, Any]) -> str:
    """Return who serves what on the devices of the backends."""
    backends = report["backends"]
    rows = [("Operations", *(backend["name"] for backend in backends))]
    for operation, implemented in report["operations"].items():
        cells = (_cell(backend, implemented) for backend in backends)
        rows.append((f"  {operation}", *cells))
    return table(rows, left=1)


def _cell(backend: dict[str, Any], implemented: list[str]) -> str:
    if backend["name"] in implemented:
        return "yes"
    # In either case the reference is what runs on tensors of the device.
    return "reference" if backend["loaded"] else "not loaded"
