"""What transformers saves with one library, it loads with the other, and the model is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("bitsandbytes")
models = pytest.importorskip("tests.clients.models", exc_type=ImportError)

ROOT = Path(__file__).parents[2]
SIDE = Path(__file__).with_name("checkpoint_side.py")
LIBRARIES = ("bnbx", "bitsandbytes")
CHECKPOINTS = [f"{kind} {name}" for kind in ("llama", "gpt2") for name in models.QUANTIZATIONS]


def run(library: str, *arguments: Any) -> None:
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, str(SIDE), library, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of both libraries, and under ``{writer}-{reader}`` what each made of them."""
    path = tmp_path_factory.mktemp("checkpoints")
    for writer in LIBRARIES:
        run(writer, "write", path / writer)
        for reader in LIBRARIES:
            run(reader, "read", path / writer, path / f"{writer}-{reader}")
    return path


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_both_write_the_same_files(name, folder):
    mine, theirs = (load_file(folder / side / name / "model.safetensors") for side in LIBRARIES)
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        assert (mine[key].dtype, mine[key].shape) == (value.dtype, value.shape), key
        if "int8" not in name and "nested" not in name:
            assert models.same_bits(mine[key], value), key
    configs = [(folder / side / name / "config.json").read_text() for side in LIBRARIES]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("writer", LIBRARIES)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_both_read_the_same_model(name, writer, folder):
    mine, theirs = (torch.load(folder / f"{writer}-{reader}")[name] for reader in LIBRARIES)
    assert mine["weights"].keys() == theirs["weights"].keys()
    # bitsandbytes multiplies int8 codes by a rounded 1/127, and rounds the inputs of their products
    # to float16 first. Elsewhere float32 sums differ in their order, torch's own by the run too.
    exact, limit = (1e-6, 5e-2) if "int8" in name else (0.0, 1e-4)
    for key, value in theirs["weights"].items():
        assert models.difference(mine["weights"][key], value) <= exact, key
    assert models.difference(mine["logits"], theirs["logits"]) < limit
