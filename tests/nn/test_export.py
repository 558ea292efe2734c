"""torch.export and AOTInductor of quantized modules."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bnbx.nn import Linear4bit

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    # torch's own: of torch.compile, inductor and the pickles in an exported program.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
]


def exported(module: Any, x: torch.Tensor, *, strict: bool = False) -> Any:
    """Export a module for any batch, and for any length where the input has one."""
    sizes = (torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2))
    return torch.export.export(
        module.eval(), (x,), dynamic_shapes=(dict(enumerate(sizes)),), strict=strict
    )


def saved_and_loaded(program: Any) -> Any:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def longer(x: torch.Tensor) -> torch.Tensor:
    """Return an input of another batch and another length."""
    return torch.cat([x, x.flip(1), x], 1).repeat(2, *(1,) * (x.dim() - 1))


@pytest.mark.parametrize("strict", [False, True])
def test_programs_give_the_same_bits(kind: Any, strict: bool, device: str) -> None:
    module, x = kind.quantized(device), kind.input(device)
    program = exported(module, x, strict=strict)
    assert torch.equal(program.run_decompositions().module()(x), module(x))
    for runs in (program, saved_and_loaded(program)):
        for given in (x, longer(x)):
            assert torch.equal(runs.module()(given), module(given))


@pytest.mark.parametrize("strict", [False, True])
def test_programs_hold_everything_once(kind: Any, strict: bool, device: str) -> None:
    module = kind.quantized(device)
    program = exported(module, kind.input(device), strict=strict)
    held = [*program.state_dict.values(), *program.constants.values()]
    assert len({tensor.data_ptr() for tensor in held}) == len(held)
    state_dict = module.state_dict()
    assert program.state_dict.keys() == dict(module.named_parameters()).keys()
    assert sum(tensor.nbytes for tensor in held) <= sum(t.nbytes for t in state_dict.values())


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_programs_know_what_to_compute_in(compute_dtype: torch.dtype, device: str) -> None:
    layer = Linear4bit(64, 32, quant_type="nf4", compute_dtype=compute_dtype).to(device)
    x = torch.randn(4, 64, device=device)
    program = torch.export.export(copy.deepcopy(layer), (x,))
    assert torch.equal(program.module()(x), layer(x))


class All(torch.nn.Module):
    def __init__(self, kinds: list[Any], device: str) -> None:
        super().__init__()
        self.embeddings = torch.nn.ModuleList(
            kind.quantized(device) for kind in kinds if not kind.is_linear
        )
        self.layers = torch.nn.ModuleList(
            kind.quantized(device) for kind in kinds if kind.is_linear
        )

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x) for layer in self.layers] + [embed(ids) for embed in self.embeddings]


IN_ANOTHER_PROCESS = """
import sys, torch
package, given, expected = sys.argv[1:]
given = torch.load(given)
try:
    torch._inductor.aoti_load_package(package)(*given)
except RuntimeError as failure:
    assert "bnbx::" in str(failure), failure
else:
    raise SystemExit("expected an error without bnbx")
import bnbx
run = torch._inductor.aoti_load_package(package)
assert all(map(torch.equal, run(*given), torch.load(expected)))
"""


@torch.no_grad()
def test_a_package_of_aotinductor(kinds: list[Any], tmp_path: Path, device: str) -> None:
    """All modules in one package; where it is run, ``import bnbx`` has to come before."""
    module = All(kinds, device).eval()
    linear, embedding = (next(k for k in kinds if k.is_linear is is_it) for is_it in (True, False))
    x, ids = linear.input(device), embedding.input(device)
    sizes = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=2)}
    others = {0: torch.export.Dim("batch_of_ids", min=2), 1: torch.export.Dim("ids", min=2)}
    program = torch.export.export(module, (x, ids), dynamic_shapes=(sizes, others))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "all.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for given in ((x, ids), (longer(x), longer(ids))):
        assert all(map(torch.equal, run(*given), module(*given)))
    files = [path, tmp_path / "given", tmp_path / "expected"]
    torch.save(given, files[1])
    torch.save(module(*given), files[2])
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, *map(str, files)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    assert ended.returncode == 0, ended.stderr
