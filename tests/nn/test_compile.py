"""torch.compile(fullgraph=True) and torch.export of quantized modules."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from bnbx.quantize import quantize_

# torch.compile itself makes an instance of torch.autograd.Function.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

KINDS = {
    "nf4 nested": ("nf4", {}),
    "fp4": ("fp4", {"double_quant": False}),
    "nf4 in bfloat16": ("nf4", {"quant_storage": torch.bfloat16, "compute_dtype": torch.bfloat16}),
    "int8": ("int8", {"threshold": 0.0}),
    "int8 with outliers": ("int8", {"threshold": 2.0}),
}


@pytest.fixture(params=KINDS)
def mlp(request: pytest.FixtureRequest, device: str) -> Any:
    layers = torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32)
    model = torch.nn.Sequential(*layers).to(device)
    kind, settings = KINDS[request.param]
    quantize_(model, kind, progress=False, **settings)
    return model


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_compiles_into_one_graph(mlp: Any, dtype: torch.dtype, device: str) -> None:
    mlp.eval()
    compiled = torch.compile(copy.deepcopy(mlp), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for rows in (1, 4, 9):
            x = torch.randn(rows, 64, device=device).to(dtype)
            torch.testing.assert_close(compiled(x), mlp(x))


def test_training_compiles_into_one_graph(mlp: Any, device: str) -> None:
    other = copy.deepcopy(mlp)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 64, device=device)
    results = []
    for run, module in ((compiled, other), (mlp, mlp)):
        inputs = x.clone().requires_grad_()
        y = run(inputs)
        y.square().sum().backward()
        results.append((y, inputs.grad, *(layer.bias.grad for layer in (module[0], module[2]))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_compiling_changes_nothing(mlp: Any, device: str, saved: Any, same: Any) -> None:
    before, attributes = saved(mlp), [dict(vars(mlp[i])) for i in (0, 2)]
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(4, 64, device=device))
    assert same(mlp.state_dict(), before)
    for i, old in zip((0, 2), attributes, strict=True):
        assert all(vars(mlp[i])[name] is value for name, value in old.items())


@pytest.mark.parametrize("strict", [False, True])
def test_export(mlp: Any, strict: bool, device: str) -> None:
    mlp.eval()
    x = torch.randn(4, 64, device=device)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(mlp, (x,), dynamic_shapes=({0: rows},), strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    for module in (program.module(), torch.export.load(buffer).module()):
        torch.testing.assert_close(module(x), mlp(x))
        more = torch.randn(7, 64, device=device)
        torch.testing.assert_close(module(more), mlp(more))


def test_embeddings_compile(kind: Any, device: str) -> None:
    module = kind.quantized(device)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x = kind.input(device)
    torch.testing.assert_close(compiled(x), module(x))
