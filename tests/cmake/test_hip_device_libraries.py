"""Where the session for AMD GPUs finds what it takes out of Debian's package."""

from __future__ import annotations

import hip_device_libraries
import pytest


@pytest.fixture
def unpacked(monkeypatch):
    """Return the roots into which packages have been unpacked, as Debian lays them out."""
    roots = []

    def unpack(release, packages, root):
        assert (release, *packages) == ("trixie", "rocm-device-libs-17")
        roots.append(root)
        for name in (
            "lib/llvm-17/lib/clang/17/amdgcn/bitcode/ocml.bc",
            "lib/x86_64-linux-gnu/cmake/AMDDeviceLibs/AMDDeviceLibsConfig.cmake",
            "share/doc/rocm-device-libs-17/copyright",
        ):
            file = root / "usr" / name
            file.parent.mkdir(parents=True)
            file.write_text(name)

    monkeypatch.setattr(hip_device_libraries.debian_packages, "unpack", unpack)
    return roots


def test_bitcode_and_what_cmake_wants_are_laid_out_once(unpacked, tmp_path, monkeypatch):
    folder = tmp_path / "rocm"
    monkeypatch.setattr("sys.argv", ["hip_device_libraries.py", str(folder)])
    for _ in range(2):
        hip_device_libraries.main()
        files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*.*"))
        assert files == ["AMDDeviceLibs/AMDDeviceLibsConfig.cmake", "bitcode/ocml.bc"]
    assert len(unpacked) == 1
    assert not unpacked[0].exists()
