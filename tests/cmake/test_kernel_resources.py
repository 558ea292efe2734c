"""The table of what CUDA kernels take, from the messages of ptxas."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cmake" / "kernel_resources.py"
SPEC = importlib.util.spec_from_file_location("kernel_resources", SCRIPT)
kernel_resources = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = kernel_resources
SPEC.loader.exec_module(kernel_resources)

MESSAGES = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4bnbx3gpu6decodeILi64EEEvPf' for 'sm_75'
ptxas info    : Function properties for _ZN4bnbx3gpu6decodeILi64EEEvPf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function '_ZN4bnbx3gpu6decodeILi32EEEvPf' for 'sm_90'
ptxas info    : Function properties for _ZN4bnbx3gpu6decodeILi32EEEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""

needs_binutils = pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "library.dir").mkdir()
    (tmp_path / "library.dir" / "decode_4bit.cu.o.resources").write_text(MESSAGES)
    return tmp_path


@needs_binutils
def test_variants_are_one_row(folder):
    lines = kernel_resources.table(folder, None).splitlines()
    assert lines[2:] == ["| decode_4bit | `decode` | 2 | 32 to 46 | 0 to 20 | 0 to 1024 |"]


@needs_binutils
def test_one_architecture(folder):
    lines = kernel_resources.table(folder, "90").splitlines()
    assert lines[2:] == ["| decode_4bit | `decode` | 1 | 32 | 0 | 0 |"]


@needs_binutils
def test_the_table_of_a_document_is_replaced(folder, tmp_path):
    document = tmp_path / "cuda.md"
    header = "| " + " | ".join(kernel_resources.HEADER) + " |"
    document.write_text(f"Before.\n\n{header}\n| -- |\n| old |\n\nAfter.\n\n| other |\n")
    table = kernel_resources.table(folder, "90")
    kernel_resources.put_into(document, table)
    assert document.read_text() == f"Before.\n\n{table}\n\nAfter.\n\n| other |\n"
    document.write_text("Nothing.\n")
    with pytest.raises(SystemExit, match="expected a table"):
        kernel_resources.put_into(document, table)


def test_nothing_recorded(tmp_path):
    with pytest.raises(SystemExit, match="BNBX_KERNEL_RESOURCES"):
        kernel_resources.table(tmp_path, None)


@pytest.mark.parametrize(
    "name", ["void bnbx::gpu::f<4, float>(int)", "bnbx::(anonymous namespace)::f(void)", "f"]
)
def test_plain_names(name):
    assert kernel_resources.plain(name) == "f"


def test_recording_keeps_messages_and_passes_on_the_rest(tmp_path):
    compiler = tmp_path / "compiler.py"
    text = MESSAGES + "a.cu(3): warning: unused\\n"
    compiler.write_text(f"import sys; sys.stderr.write({text!r}); sys.exit(3)")
    command = [sys.executable, compiler, "-c", "a.cu", "-o", tmp_path / "a.o"]
    done = subprocess.run(  # noqa: S603 (our own code)
        [sys.executable, SCRIPT, "record", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr == "a.cu(3): warning: unused\\n"
    assert (tmp_path / "a.o.resources").read_text() == MESSAGES
