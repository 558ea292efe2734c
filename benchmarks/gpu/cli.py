"""Builds, tests and times the CUDA kernels on this machine's GPU, without a network.

What has to be installed: torch for CUDA, NumPy, safetensors, nvcc, CMake, Ninja, Cython and pytest;
compute-sanitizer and bitsandbytes take part if they are there. Nothing is installed: what is built
lies in build/gpu.
The results are written to benchmarks/results/DEVICE.json, and as tables beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "gpu"
SITE = BUILD / "site"
STEPS = ("build", "test", "sanitize", "bench")
#: Of the operations, and what asks for a GPU by itself.
TESTS = ("tests/ops", "tests/optim/test_paged_cuda.py")
#: Small tests that reach one kernel of each kind; under the tool a launch takes a hundred times as
#: long.
SANITIZED = "test_sizes or test_strides_do_not_matter or test_zero_block or test_empty"
#: Fails unless there are kernels: on the reference all tests would pass as well.
LOADED = """
import sys
from bnbx.backends import BACKENDS
if not any(b.device_type == "cuda" and b.operations for b in BACKENDS):
    sys.exit("no CUDA kernels are loaded; the lines above say why")
"""
#: What each step imports, beside torch.
NEEDED = {
    "build": ("Cython", "numpy", "safetensors"),
    "test": ("pytest", "numpy", "safetensors"),
    "sanitize": ("pytest", "numpy", "safetensors"),
    "bench": ("numpy", "safetensors"),
}
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="all of them")
    parser.add_argument("--architectures", default="native", help="CMAKE_CUDA_ARCHITECTURES")
    parser.add_argument("--device", default="cuda", help="of the tests and the benchmarks")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what pytest runs on the device")
    parser.add_argument("--select", metavar="TEXT", help="pytest's -k, of step test")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS[:1], help="memcheck")
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows whose name holds it")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each side")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--from", dest="source", type=Path, help="print this file, run nothing")
    return parser.parse_args(given)


def environment() -> dict[str, str]:
    """Return the environment in which the bnbx that was built is found, and programs of Python."""
    paths = [str(SITE), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    programs = (os.environ.get("PATH", ""), sysconfig.get_path("scripts"))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join(filter(None, programs)),
    }


def program(name: str) -> str | None:
    """Return where a program is."""
    return shutil.which(name, path=environment()["PATH"])


def missing(steps: Collection[str]) -> list[str]:
    """Return what these steps need that is not installed."""
    packages = dict.fromkeys(name for step in steps for name in ("torch", *NEEDED[step]))
    found = [name for name in packages if importlib.util.find_spec(name) is None]
    return [*found, *(["cmake"] if "build" in steps and not program("cmake") else [])]


def run(*command: str | Path) -> bool:
    """Run a program in the repository; return whether it succeeded."""
    print("+", *command, flush=True)
    return not subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


def build(options: argparse.Namespace) -> bool:
    """Build the modules of the CPU and of CUDA, and put the package together."""
    configure = {
        "CMAKE_BUILD_TYPE": "Release",
        "COMPUTE_BACKEND": "cuda",
        "CMAKE_CUDA_ARCHITECTURES": options.architectures,
        "BNBX_KERNEL_RESOURCES": "ON",
        # As scikit-build-core calls it.
        "SKBUILD": "2",
        "SKBUILD_SABI_COMPONENT": "Development.SABIModule",
        "SKBUILD_SABI_VERSION": "3.10",
        "Python_EXECUTABLE": sys.executable,
    }
    defines = [f"-D{name}={value}" for name, value in configure.items()]
    if program("ninja"):
        defines.append("-GNinja")
    compiled = (
        run("cmake", "-S", ROOT, "-B", BUILD, *defines)
        and run("cmake", "--build", BUILD, f"-j{os.cpu_count()}")
        and run("cmake", "--install", BUILD, "--prefix", SITE)
    )
    if not compiled:
        return False
    shutil.copytree(ROOT / "src" / "bnbx", SITE / "bnbx", dirs_exist_ok=True, ignore=_modules)
    run(sys.executable, "cmake/kernel_resources.py", "table", BUILD)
    return run(sys.executable, "-m", "bnbx") and run(sys.executable, "-c", LOADED)


def _modules(_folder: str, names: list[str]) -> list[str]:
    """Leave modules that were built for another Python."""
    suffix = sysconfig.get_config_var("SHLIB_SUFFIX") or ".so"
    return [name for name in names if name.endswith(suffix) or name == "__pycache__"]


def test(options: argparse.Namespace) -> bool:
    """Run the conformance tests on the device."""
    select = ("-k", options.select) if options.select else ()
    return run(*_pytest(options), *options.tests, *select)


def sanitize(options: argparse.Namespace) -> bool | None:
    """Run some of the tests under compute-sanitizer, if it is here."""
    sanitizer = program("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not here")
        return None
    select = (*_pytest(options), "tests/ops", "-k", SANITIZED)
    how = ("--error-exitcode=1", "--target-processes=all")
    done = [run(sanitizer, f"--tool={tool}", *how, *select) for tool in options.tools]
    return all(done)


def _pytest(options: argparse.Namespace) -> tuple[str, ...]:
    # Warnings are of other versions of torch than the one that the project is tested with.
    return (sys.executable, "-m", "pytest", "-q", "-W", "default", f"--device={options.device}")


def bench(options: argparse.Namespace) -> bool:
    """Time the cases, and write the results under the name of the device."""
    results = BUILD / "bench.json"
    small = ("--small",) if options.small else ()
    only = [argument for text in options.only or () for argument in ("--only", text)]
    settings = (f"--device={options.device}", f"--rounds={options.rounds}", f"--json={results}")
    if not run(sys.executable, "-m", "gpu.bench", *settings, *small, *only):
        return False
    name = re.sub(r"[^a-z0-9]+", "-", _device_of(results).lower()).strip("-")
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(results, folder / f"{name}.json")
    (folder / f"{name}.md").write_text(_text_of(results, markdown=True))
    print(f"{folder / name}.json, {name}.md")
    return True


def _device_of(file: Path) -> str:
    import json

    return str(json.loads(file.read_text())["machine"]["device"])


def _text_of(file: Path, *, markdown: bool) -> str:
    sys.path[:0] = [str(SITE), str(ROOT / "src")]
    from gpu import report

    return report.text(report.load(file), markdown=markdown)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    if options.source:
        print(_text_of(options.source, markdown=False))
        return
    if absent := missing(options.steps):
        sys.exit(f"not installed: {', '.join(absent)}")
    steps = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}
    done: dict[str, bool | None] = {}
    for name in STEPS:
        if name in options.steps:
            done[name] = steps[name](options)
            if name == "build" and not done[name]:
                break
    said = {True: "passed", False: "failed", None: "left out"}
    print(", ".join(f"{name}: {said[ok]}" for name, ok in done.items()))
    if False in done.values():
        sys.exit(1)
