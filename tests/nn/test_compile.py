"""torch.compile(fullgraph=True) of quantized modules; docs/compile.md says what it is good for."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from bnbx.nn import Embedding8bit, EmbeddingNF4
from bnbx.quantize import quantize_

# torch.compile itself makes an instance of torch.autograd.Function, and inductor uses torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

KINDS = {
    "nf4 nested": ("nf4", {}),
    "fp4": ("fp4", {"double_quant": False}),
    "nf4 in bfloat16": ("nf4", {"quant_storage": torch.bfloat16, "compute_dtype": torch.bfloat16}),
    "int8": ("int8", {"threshold": 0.0}),
    "int8 with outliers": ("int8", {"threshold": 2.0}),
}


@pytest.fixture(params=KINDS)
def quantized(request: pytest.FixtureRequest, device: str) -> Any:
    """Return what quantizes the linear layers of a module."""
    kind, settings = KINDS[request.param]

    def quantize(module: Any) -> Any:
        quantize_(module.to(device), kind, progress=False, **settings)
        return module

    return quantize


@pytest.fixture
def mlp(quantized: Any) -> Any:
    layers = torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32)
    return quantized(torch.nn.Sequential(*layers))


class Block(torch.nn.Module):
    """A decoder's block: attention and an MLP, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = torch.nn.Linear(64, 192), torch.nn.Linear(64, 64, bias=False)
        self.up, self.down = torch.nn.Linear(64, 96), torch.nn.Linear(96, 64)

    def forward(self, x: Any) -> Any:
        heads = [h.unflatten(-1, (4, 16)).transpose(-2, -3) for h in self.qkv(x).chunk(3, -1)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.o(mixed.transpose(-2, -3).flatten(-2))
        hidden = torch.nn.functional.silu(self.up(torch.nn.functional.layer_norm(x, (64,))))
        return x + self.down(hidden)


def blocks(count: int) -> Any:
    return torch.nn.Sequential(*(Block() for _ in range(count)))


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


@torch.no_grad()
def test_other_shapes_do_not_recompile(quantized: Any, device: str) -> None:
    model = quantized(blocks(1))
    compiled = torch.compile(
        copy.deepcopy(model), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    compiled(torch.randn(2, 8, 64, device=device))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((3, 9), (5, 8), (2, 17)):
            x = torch.randn(*shape, 64, device=device)
            torch.testing.assert_close(compiled(x), model(x))


def test_inference_mode(mlp: Any, device: str) -> None:
    compiled = torch.compile(copy.deepcopy(mlp), fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        x = torch.randn(4, 64, device=device)
        torch.testing.assert_close(compiled(x), mlp(x))


@torch.no_grad()
def test_a_block_that_is_compiled_by_itself_compiles_once(quantized: Any, device: str) -> None:
    model, backend = quantized(blocks(3)), CompileCounter()
    for block in model:
        block.compile(fullgraph=True, backend=backend)
    model(torch.randn(2, 8, 64, device=device))
    assert backend.frame_count == 1


def test_a_graph_grows_by_the_same_with_every_block(quantized: Any, device: str) -> None:
    sizes = []
    for count in (1, 2, 4):
        torch._dynamo.reset()
        backend = CompileCounter()
        compiled = torch.compile(quantized(blocks(count)), fullgraph=True, backend=backend)
        compiled(torch.randn(2, 8, 64, device=device))
        sizes.append(backend.op_count)
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(quantized: Any, inside: bool, device: str) -> None:
    model = quantized(blocks(1))
    other = copy.deepcopy(model)
    x = torch.randn(2, 8, 64, device=device)

    def within(module: Any) -> Any:
        def run(x: Any) -> Any:
            with torch.autocast(device, torch.bfloat16):
                return module(x)

        return run

    def compile_(run: Any) -> Any:
        return torch.compile(run, fullgraph=True, backend="aot_eager")

    compiled = compile_(within(other)) if inside else within(compile_(other))
    torch.testing.assert_close(compiled(x), within(model)(x))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_compiles_into_one_graph(quantized: Any, checkpointed: bool, device: str) -> None:
    model = quantized(blocks(1))
    model.requires_grad_(False)
    other = copy.deepcopy(model)
    adapter = torch.randn(64, 4, device=device), torch.randn(4, 64, device=device)

    def step(model: Any, x: Any, A: Any, B: Any) -> Any:
        for block in model:
            # As LoRA: what is trained is beside the frozen layers, and gradients go through them.
            x = x + x @ A @ B
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        return x.square().mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 8), (3, 12)):
        x, results = torch.randn(*shape, 64, device=device), []
        for run, module in ((compiled, other), (step, model)):
            given = [tensor.clone().requires_grad_() for tensor in (x, *adapter)]
            loss = run(module, *given)
            results.append([loss, *torch.autograd.grad(loss, given)])
        torch.testing.assert_close(*results)


def test_gradients_of_biases(mlp: Any, device: str) -> None:
    other = copy.deepcopy(mlp)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 64, device=device)
    for run in (compiled, mlp):
        run(x).square().sum().backward()
    for i in (0, 2):
        torch.testing.assert_close(other[i].bias.grad, mlp[i].bias.grad)


def test_compiling_changes_nothing(mlp: Any, device: str, saved: Any, same: Any) -> None:
    before, attributes = saved(mlp), [dict(vars(mlp[i])) for i in (0, 2)]
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(4, 64, device=device))
    assert same(mlp.state_dict(), before)
    for i, old in zip((0, 2), attributes, strict=True):
        assert all(vars(mlp[i])[name] is value for name, value in old.items())


def test_embeddings_compile(kind: Any, device: str) -> None:
    module = kind.quantized(device)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x = kind.input(device)
    torch.testing.assert_close(compiled(x), module(x))


# Saving ------------------------------------------------------------------------------------------


def through_torch_save(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("way", COPIES)
@torch.no_grad()
def test_copies_of_compiled_models(mlp: Any, way: str, in_place: bool, device: str) -> None:
    if in_place:
        mlp.compile(fullgraph=True, backend="aot_eager")
    compiled = mlp if in_place else torch.compile(mlp, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 64, device=device)
    y = compiled(x)
    assert torch.equal(COPIES[way](compiled)(x), y)


def test_state_dicts_of_compiled_models(mlp: Any, saved: Any, same: Any) -> None:
    compiled = torch.compile(copy.deepcopy(mlp), backend="eager")
    state_dict = compiled.state_dict()
    assert [*state_dict] == [f"_orig_mod.{key}" for key in mlp.state_dict()]
    with torch.no_grad():
        mlp[0].bias.zero_()
    mlp.load_state_dict({key.removeprefix("_orig_mod."): v for key, v in state_dict.items()})
    assert same(mlp.state_dict(), saved(compiled._orig_mod))
    mlp.compile(backend="eager")
    assert [*mlp.state_dict()] == [*compiled._orig_mod.state_dict()]


# Inductor ----------------------------------------------------------------------------------------


class OneOfEach(torch.nn.Module):
    """Embeddings and an MLP of every kind."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.embeddings = torch.nn.ModuleList(
            [EmbeddingNF4(32, 64).to(device), Embedding8bit(32, 64).to(device)]
        )
        self.mlps = torch.nn.ModuleList()
        for kind, settings in KINDS.values():
            layers = torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32)
            mlp = torch.nn.Sequential(*layers).to(device)
            quantize_(mlp, kind, progress=False, **settings)
            self.mlps.append(mlp)

    def forward(self, ids: Any) -> list[Any]:
        x = sum(embedding(ids) for embedding in self.embeddings)
        return [mlp(x) for mlp in self.mlps]


@torch.no_grad()
def test_inductor_gives_the_same_bits_and_its_cache_is_found_again(device: str) -> None:
    model = OneOfEach(device).eval()
    expected = copy.deepcopy(model)
    with torch._inductor.utils.fresh_cache():
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=True)
        for shape in ((2, 3), (3, 5)):
            ids = torch.randint(0, 32, shape, device=device)
            assert all(map(torch.equal, compiled(ids), expected(ids)))
        saved = torch.compiler.save_cache_artifacts()
    assert saved is not None
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.utils.fresh_cache():
        assert torch.compiler.load_cache_artifacts(saved[0]) is not None
        again = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=True)
        assert all(map(torch.equal, again(ids), expected(ids)))
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
