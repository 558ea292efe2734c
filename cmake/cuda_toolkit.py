"""Puts a CUDA toolkit into a folder, for the sessions that build with several of them.

``cuda_toolkit.py 13.4 FOLDER`` links what the package index has, which pip must have installed;
``12.6`` puts together the three packages with all that clang needs, but no nvcc.
``cuda_toolkit.py 12.4 FOLDER`` and ``11.8`` take Debian's packages, with apt's own programs but
without touching the system: nothing is installed, the lists and the sources are in the folder.
"""

from __future__ import annotations

import argparse
import shutil
import sysconfig
from pathlib import Path

import debian_packages

#: Debian's release for each toolkit, and the packages' names of the runtime library.
DEBIAN = {"11.8": ("bookworm", "libcudart11.0"), "12.4": ("trixie", "libcudart12")}
PACKAGES = ("nvidia-cuda-toolkit", "nvidia-cuda-dev", "libcub-dev", "libthrust-dev", "libcu++-dev")
#: Where nvcc looks, in the layout of NVIDIA's own packages.
PROFILE = """\
TOP              = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH            += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES        +=  "-I$(TOP)/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/lib64"
"""
TOOLS = ("ptxas", "fatbinary", "cudafe++", "bin2c", "nvlink", "cuobjdump", "__nvcc_device_query")


def from_index(version: str, folder: Path, site: Path) -> None:
    """Take the toolkit of the package index that is installed in ``site``."""
    if version.startswith("12"):
        parts = [site / "nvidia" / name for name in ("cuda_nvcc", "cuda_runtime", "cuda_cccl")]
        for part in parts:
            shutil.copytree(part, folder, dirs_exist_ok=True)
        (folder / "bin" / "ptxas").chmod(0o755)
        # Clang's own headers include it, of which nothing here is used.
        (folder / "include" / "curand_mtgp32_kernel.h").touch()
        return
    folder.symlink_to(site / "nvidia" / "cu13")
    library = folder / "lib" / "libcudart.so"
    if not library.exists():  # CMake looks for it, though nothing is linked with it
        library.symlink_to("libcudart.so.13")


def from_debian(version: str, folder: Path) -> None:
    """Download Debian's packages and lay them out as NVIDIA does."""
    release, runtime = DEBIAN[version]
    root = folder.with_name(folder.name + "-debian")
    shutil.rmtree(root, ignore_errors=True)
    debian_packages.unpack(release, (runtime, *PACKAGES), root)
    lay_out(root / "usr", folder)
    shutil.rmtree(root)


def lay_out(usr: Path, folder: Path) -> None:
    """Copy what a build needs out of Debian's folders."""
    toolkit, libraries = usr / "lib" / "nvidia-cuda-toolkit", usr / "lib" / "x86_64-linux-gnu"
    for name in ("bin", "nvvm/bin", "nvvm/libdevice", "lib64"):
        (folder / name).mkdir(parents=True)
    copies = {
        "bin": [toolkit / "bin" / "nvcc", *(usr / "bin" / tool for tool in TOOLS)],
        "nvvm/bin": [toolkit / "bin" / "cicc"],
        "nvvm/libdevice": (toolkit / "libdevice").glob("*.bc"),
        "lib64": [
            *libraries.glob("libcudart*"),
            libraries / "libcudadevrt.a",
            libraries / "libculibos.a",
        ],
    }
    for name, files in copies.items():
        for file in files:
            if file.exists():
                shutil.copy2(file, folder / name, follow_symlinks=False)
    shutil.copytree(usr / "include", folder / "include", symlinks=True)
    shutil.copytree(toolkit / "bin" / "crt", folder / "bin" / "crt", symlinks=True)
    (folder / "bin" / "nvcc.profile").write_text(PROFILE)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="of the toolkit, such as 13.4")
    parser.add_argument("folder", type=Path, help="made; what Debian's packages gave is kept")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if options.version in DEBIAN:
        if not (folder / "bin" / "nvcc").exists():
            shutil.rmtree(folder, ignore_errors=True)
            from_debian(options.version, folder)
        return
    if folder.is_symlink():  # to an environment that may be gone
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    from_index(options.version, folder, Path(sysconfig.get_path("purelib")))


if __name__ == "__main__":
    main()
