"""docs/optimizers.md: its table has every name, and the bytes that the states really take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bnbx

DOCUMENT = Path(__file__).parents[2] / "docs" / "optimizers.md"
#: What is in the package and no family; the text has these.
OTHERS = {
    "GlobalOptimManager",
    "PagedMemory",
    "PytorchLARS",
    "flatten_state_dict",
    "unflatten_state_dict",
}


def rows() -> list[list[str]]:
    """The cells of the table of families."""
    lines = DOCUMENT.read_text().split("## Families\n")[1].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(row: list[str]) -> list[str]:
    return [name for cell in row for name in cell.split("`")[1::2] if "." not in name]


def test_every_class_is_in_the_table():
    documented = [name for row in rows() for name in names(row)]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(bnbx.optim.__all__) - OTHERS
    assert all(name in DOCUMENT.read_text() for name in OTHERS)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_bytes_per_parameter(row):
    sizes = [float(size) for size in row[-1].split(",")]
    for name, size in zip(names(row)[: len(sizes)], sizes, strict=True):
        p = torch.nn.Parameter(torch.randn(1024, 256))
        p.grad = torch.randn_like(p)
        optimizer = getattr(bnbx.optim, name)([p], lr=1e-3)
        optimizer.step()
        moments = (t for key, t in optimizer.state[p].items() if key[:-1] in {"state", "absmax"})
        taken = sum(t.numel() * t.element_size() for t in moments)
        assert taken / p.numel() == pytest.approx(size, abs=0.006), name
