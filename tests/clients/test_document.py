"""docs/compatibility.md: the versions it names are the ones tested here."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS

TEXT = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()


def test_versions():
    named = dict(re.findall(r"^\| ([A-Za-z]+) ([\d.]+) \|", TEXT, re.MULTILINE))
    assert len(named) == 6
    assert named == {name: metadata.version(name) for name in named}


def test_every_optimizer_name_of_the_trainer():
    assert all(f"`{name.value}`" in TEXT for name in _BITSANDBYTES_OPTIMIZERS)
