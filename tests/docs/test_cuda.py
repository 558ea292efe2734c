"""docs/cuda.md names what the kernels do."""

from __future__ import annotations

import re

from bnbx.ops import CONTRACTS

from .documents import ROOT


def test_every_operation_has_its_limit():
    _, _, section = (ROOT / "docs" / "cuda.md").read_text().partition("## Limits of the operations")
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named - {"o", "s", "w"} == {name.removesuffix(".out") for name in CONTRACTS}
