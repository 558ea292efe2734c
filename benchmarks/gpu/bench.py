"""Times the cases in this process; ``cli`` starts it with the bnbx that it has built."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import Any

import torch

from bnbx.backends import BACKENDS
from gpu import cases, report
from gpu.timing import interleaved
from side_by_side.libraries import MISSING
from side_by_side.report import host


def machine(device: torch.device, rounds: int) -> dict[str, Any]:
    """Return what is measured on."""
    loaded = [b for b in BACKENDS if b.device_type == device.type and not b.reason]
    about = host(("torch", "bitsandbytes"))
    found = {
        "device": about["cpu"],
        "kernels": ", ".join(f"{b.name} ({b.details['isa']})" for b in loaded) or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "date": about["date"],
        "clock": f"medians of {rounds} samples",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
    return found


def measure(options: argparse.Namespace) -> report.Report:
    """Time what the command line asks for."""
    device = torch.device(options.device)
    sizes = cases.small(device) if options.small else cases.Sizes(device)
    found = cases.libraries()
    copy = cases.copy(sizes)
    times, _ = interleaved(copy.sides, 5, device)
    bandwidth = copy.moved / times["torch"].median
    run = report.Report(machine(device, options.rounds), bandwidth)
    run.left_out += [f"{name}: {why}" for name, why in MISSING.items()]
    for case in cases.all_cases(sizes, found):
        if options.only and not any(part in case.name for part in options.only):
            continue
        row = _time(case, options.rounds, device)
        run.rows.append(row)
        print(case.name, {s: report.duration(t.median) for s, t in row.times.items()}, flush=True)
        run.save(options.json)  # what there is, should the time run out
    return run


def _time(case: cases.Case, rounds: int, device: torch.device) -> report.Row:
    times, failures = interleaved(case.sides, rounds, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return report.Row(case.name, case.labels, case.moved, times, failures)


def main() -> None:
    parser = argparse.ArgumentParser(prog="gpu.bench", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", action="append")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    print(report.text(measure(parser.parse_args()), markdown=False))


if __name__ == "__main__":
    main()
