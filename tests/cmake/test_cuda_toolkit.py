"""What the sessions for CUDA take as a toolkit from the packages of the index."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cmake" / "cuda_toolkit.py"
SPEC = importlib.util.spec_from_file_location("cuda_toolkit", SCRIPT)
cuda_toolkit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cuda_toolkit)


@pytest.fixture
def site(tmp_path):
    files = (
        "cuda_nvcc/bin/ptxas",
        "cuda_nvcc/nvvm/libdevice/libdevice.10.bc",
        "cuda_runtime/include/cuda.h",
        "cuda_cccl/include/nv/target",
        "cu13/bin/nvcc",
        "cu13/lib/libcudart.so.13",
    )
    for name in files:
        file = tmp_path / "site" / "nvidia" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "site"


def test_packages_of_12_are_one_folder_for_clang(site, tmp_path):
    folder = tmp_path / "toolkit"
    cuda_toolkit.from_index("12.6", folder, site)
    assert os.access(folder / "bin" / "ptxas", os.X_OK)
    for name in ("nvvm/libdevice/libdevice.10.bc", "include/cuda.h", "include/nv/target"):
        assert (folder / name).read_text().endswith(name)


def test_13_is_linked_anew_where_the_environment_is_gone(site, tmp_path, monkeypatch):
    folder = tmp_path / "toolkit"
    folder.symlink_to(tmp_path / "gone")
    monkeypatch.setattr("sys.argv", ["cuda_toolkit.py", "13.4", str(folder)])
    monkeypatch.setattr(cuda_toolkit.sysconfig, "get_path", lambda _: str(site))
    for _ in range(2):
        cuda_toolkit.main()
        assert (folder / "bin" / "nvcc").exists()
        assert (folder / "lib" / "libcudart.so").exists()
