"""compat/: the distribution that installs bnbx under the name bitsandbytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import bnbx
from bnbx.compat import COMPATIBLE_VERSION

SOURCE = Path(__file__).parents[2] / "compat"
BUILD = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"


def command(*arguments, cwd=None):
    done = subprocess.run(  # noqa: S603 (our own programs)
        list(map(str, arguments)), capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, because a build leaves files in its directory."""
    pytest.importorskip("setuptools", minversion="77")
    copy = shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "compat")
    target = tmp_path_factory.mktemp("wheel")
    command(sys.executable, "-c", BUILD, target, cwd=copy)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Return the interpreter of a new environment with the wheel, and bnbx and torch from here."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True, with_pip=False)
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    command(*pip, "install", "--no-index", "--no-deps", wheel)
    site = command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Behind its own packages: a bitsandbytes from here is not the one that is found.
    others = [Path(package.__file__).parents[1] for package in (bnbx, torch)]
    Path(site, "others.pth").write_text("".join(f"{other}\n" for other in others))
    return python


def test_wheel_is_one_small_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = message_from_bytes(archive.read(metadata))
    assert [name for name in names if ".dist-info/" not in name] == ["bitsandbytes/__init__.py"]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert fields["Name"] == "bitsandbytes"
    assert fields["Version"].partition("+") == (COMPATIBLE_VERSION, "+", "bnbx")
    assert fields["Requires-Dist"] == "bnbx"


@pytest.mark.parametrize(
    "requirement",
    ["bitsandbytes", "bitsandbytes>=0.46.1", "bitsandbytes==0.50.2", "bitsandbytes~=0.50.0"],
)
def test_version_satisfies_requirements(wheel, requirement):
    assert Requirement(requirement).specifier.contains(wheel.name.split("-")[1])


def test_import_in_a_fresh_environment_is_bnbx(python):
    command(
        python,
        "-c",
        """
import importlib.metadata, importlib.util
assert importlib.metadata.version("bitsandbytes") == "0.50.2+bnbx"
assert importlib.util.find_spec("bitsandbytes") is not None
from bitsandbytes.optim.adamw import AdamW8bit
import bitsandbytes, bnbx, sys
assert bitsandbytes is sys.modules["bitsandbytes"] and bitsandbytes.nn is bnbx.nn
assert AdamW8bit is bnbx.optim.AdamW8bit and "bitsandbytes" in str(AdamW8bit)
assert bitsandbytes.__version__ == "0.50.2"
import bnbx.compat.bitsandbytes as again
assert again is bitsandbytes
""",
    )


def test_child_processes_have_it_too(python):
    child = "import bitsandbytes, bnbx; print(bitsandbytes.nn.Linear4bit is bnbx.nn.Linear4bit)"
    parent = f"""
import subprocess, sys
print(subprocess.check_output([sys.executable, "-c", {child!r}], text=True))
"""
    assert command(python, "-c", parent).split() == ["True"]


def test_the_program_of_that_name_says_what_runs(python):
    assert f"bnbx {bnbx.__version__}" in command(python, "-W", "ignore", "-m", "bitsandbytes")


def test_without_bnbx_the_error_names_it(python, tmp_path):
    """Isolated from the .pth, nothing but the package is there."""
    package = command(
        python, "-c", "import importlib.util as u; print(u.find_spec('bitsandbytes').origin)"
    ).strip()
    shutil.copytree(Path(package).parent, tmp_path / "bitsandbytes")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import bitsandbytes"
    done = subprocess.run(  # noqa: S603
        [python, "-S", "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "No module named 'bnbx'" in done.stderr
