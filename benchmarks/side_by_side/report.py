"""The results of a run with what they were measured on, as a JSON file."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bnbx
from common import default_threads, write_report
from side_by_side.comparison import Result
from side_by_side.libraries import isas
from side_by_side.limits import Work
from side_by_side.timing import Settings, Times

if TYPE_CHECKING:
    from collections.abc import Iterable

PEERS = ("torch", "bitsandbytes", "torchao", "deepspeed")


@dataclasses.dataclass
class Report:
    """A run.

    Attributes
    ----------
    machine
        Processor, instruction sets, versions, date, clock.
    sweep
        Whether it has the shapes of models, and not the operations with bars.
    results
        In the order in which they were measured.
    left_out
        Sentences on what was not measured, and why.
    """

    machine: dict[str, Any]
    sweep: bool = False
    results: list[Result] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def threads(self) -> list[int]:
        """Numbers of threads that were measured."""
        return sorted({result.threads for result in self.results})

    def save(self, file: Path) -> None:
        """Write everything, a result to a line; the folder is made."""
        write_report(self, "results", file)


def load(file: Path) -> Report:
    """Return what ``save`` has written."""
    content = json.loads(file.read_text())
    results = []
    for entry in content["results"]:
        entry["work"] = Work(**entry["work"])
        for key in ("times", "probes"):
            entry[key] = {side: Times(**times) for side, times in entry[key].items()}
        results.append(Result(**entry))
    return Report(content["machine"], content["sweep"], results, content["left_out"])


def machine(settings: Settings) -> dict[str, Any]:
    """Return a description of this machine, of what is installed and of how it is timed."""
    return {
        **host(PEERS),
        "clock": "CPU time of one thread" if settings.cpu_time else "wall clock",
        "rounds": settings.rounds,
    }


def host(peers: Iterable[str]) -> dict[str, Any]:
    """Return a description of this machine, and the versions of bnbx and of other packages."""
    installed = {d.name: d.version for d in metadata.distributions()}
    return {
        "cpu": cpu_name(),
        "cpus": default_threads(),
        "caches": caches(),
        "isas": isas(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {"bnbx": bnbx.__version__, **{n: installed.get(n, "absent") for n in peers}},
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
    }


def cpu_name() -> str:
    """Return the processor's name as its vendor writes it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def caches() -> str:
    """Return the caches of the first CPU, such as ``"L1d 48K, L2 2048K"``; empty if unknown."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (folder / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found)
