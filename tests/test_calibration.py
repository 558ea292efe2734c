"""quantize_ with a search of scales and with calibration batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnbx
from bnbx import functional as F
from bnbx.quantize import calibration
from bnbx.quantize.gptq import with_error_feedback
from bnbx.quantize.random_tokens import random_tokens


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden_states, scale=1.0):
        return (hidden_states + scale * self.down(torch.relu(self.up(hidden_states))),)


class Stack(nn.Module):
    """An embedding of uneven importance, blocks, a head."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.first = nn.Linear(32, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, 16)
        with torch.no_grad():
            self.first.weight *= torch.logspace(-1.5, 1, width).unsqueeze(1)

    def forward(self, x, scale=1.0):
        x = self.first(x)
        for number, layer in enumerate(self.layers):
            x = (layer(x, scale=scale) if number % 2 else layer(hidden_states=x, scale=scale))[0]
        return self.head(x)


def inputs(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(32, 32, generator=torch.Generator().manual_seed(9))
    return [torch.randn(1, 64, 32, generator=generator) @ mix for _ in range(count)]


def model() -> Stack:
    torch.manual_seed(3)
    return Stack()


def error(kind: str = "nf4", **settings) -> float:
    """Return the error of the outputs on inputs that were not used for calibration."""
    exact, quantized = model(), model()
    bnbx.quantize_(quantized, kind, progress=False, **settings)
    held_out = torch.cat(inputs(8, seed=1))
    with torch.no_grad():
        return (exact(held_out) - quantized(held_out)).square().mean().item()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_each_step_lowers_the_error_on_held_out_inputs(kind, double_quant):
    batches = inputs(16, seed=0)
    given = {"kind": kind, "double_quant": double_quant}
    plain, searched = error(**given), error(**given, scale_search=True)
    imatrix = error(**given, calibration=batches, calibration_method="imatrix")
    gptq = error(**given, calibration=batches)
    assert searched < plain
    assert imatrix < searched
    assert gptq < imatrix


def test_batches_of_all_kinds_give_the_same_and_every_run_does():
    batches = inputs(4, seed=0)
    forms = [batches, batches, [(x,) for x in batches], [{"x": x} for x in batches], iter(batches)]
    states = []
    for form in forms:
        quantized = model()
        bnbx.quantize_(quantized, progress=False, calibration=form)
        states.append(quantized.state_dict())
    for state in states[1:]:
        assert all(
            torch.equal(a, b) for a, b in zip(states[0].values(), state.values(), strict=True)
        )


def test_keywords_reach_the_blocks_and_the_model_is_left_as_it_was():
    batches = [{"x": x, "scale": 0.5} for x in inputs(4, seed=0)]
    quantized = model().train()
    quantized.layers[1].eval()
    report = bnbx.quantize_(quantized, progress=False, calibration=batches)
    assert [layer.name for layer in report.layers] == [
        "first",
        *(f"layers.{i}.{name}" for i in range(3) for name in ("up", "down")),
        "head",
    ]
    assert quantized.training
    assert not quantized.layers[1].training
    assert not any(module._forward_pre_hooks for module in quantized.modules())


def test_blocks_see_what_quantized_ones_give():
    """The inputs of the last block differ from those that the unquantized model gives it."""
    batches = inputs(4, seed=0)
    whole, skipped = model(), model()
    bnbx.quantize_(whole, progress=False, calibration=batches)
    bnbx.quantize_(
        skipped, skip=["first", "layers.0", "layers.1"], progress=False, calibration=batches
    )
    assert not torch.equal(whole.layers[2].up.weight, skipped.layers[2].up.weight)


def test_a_model_without_a_stack():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    batches = [torch.randn(20, 64) for _ in range(3)]
    report = bnbx.quantize_(net, progress=False, calibration=batches)
    assert [layer.name for layer in report.layers] == ["0", "2"]


class Reader(nn.Module):
    """A language model as transformers has them, with a token that only a picture may have."""

    class Config:
        is_encoder_decoder = False
        max_position_embeddings = 40

        def to_dict(self):
            return {"image_token_id": 5, "eos_token_id": [0, 1], "pad_token_id": None}

        def get_text_config(self):
            return self

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.config, self.stack = self.Config(), model()
        self.embedding = nn.Embedding(50, 32)
        with torch.no_grad():
            self.embedding.weight *= torch.logspace(-1, 1, 32)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, ids):
        if ids.eq(5).any():
            raise RuntimeError("no picture for its token")
        return self.stack(self.embedding(ids))


def test_random_tokens_are_batches_that_need_no_text():
    plain, given, other = Reader(), Reader(), Reader()
    bnbx.quantize_(plain, scale_search=True, progress=False)
    bnbx.quantize_(given, calibration="random", progress=False)
    ids = random_tokens(other)
    assert [batch.shape for batch in ids] == [(1, 40)] * 4
    assert not set(torch.cat(ids).unique().tolist()) & {0, 1, 5}
    assert len(torch.cat(ids).unique()) > 40
    bnbx.quantize_(other, calibration=ids, calibration_method="imatrix", progress=False)
    for a, b in zip(given.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)

    exact, text = Reader(), torch.randint(6, 50, (20, 30))
    errors = [(exact(text) - m(text)).square().mean().item() for m in (plain, given)]
    assert 0 < errors[1] < errors[0]


class Parallel(nn.Module):
    """A list of modules that is no chain: all get the same."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        return sum(expert(x) for expert in self.experts)


def test_modules_that_are_no_chain_get_the_inputs_that_they_have():
    net, alone = Parallel(), nn.Sequential(nn.Linear(64, 64))
    alone[0].load_state_dict(net.experts[2].state_dict())
    batches = [torch.randn(20, 64) @ torch.randn(64, 64) for _ in range(3)]
    for module in (net, alone):
        bnbx.quantize_(module, progress=False, calibration=batches)
    assert torch.equal(net.experts[2].weight, alone[0].weight)


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.used(x)


def refuses(expected: str, **settings) -> None:
    given = {"calibration": [torch.randn(4, 8)], "progress": False, **settings}
    with pytest.raises(ValueError, match=expected):
        bnbx.quantize_(Picky(), **given)


def test_refusals():
    refuses("calibration: expected batches that reach unused, got none")
    refuses("calibration: expected finite inputs of every layer, got others of used",
            calibration=[torch.full((4, 8), float("nan"))])  # fmt: skip
    refuses("calibration: expected at least one batch", calibration=[])
    refuses("calibration: expected several batches", calibration=torch.randn(4, 8))
    refuses("calibration: expected batches that are", calibration=[3])
    refuses("calibration: expected batches or 'random', got 'text.txt'", calibration="text.txt")
    refuses("calibration: expected batches, because the model is no lang", calibration="random")
    refuses("calibration_method: expected one of", calibration_method="awq")
    refuses("calibration: expected None", kind="int8")
    refuses("calibration_method: expected the", calibration_method="imatrix", calibration=None)
    refuses("scale_search: expected the default", kind="int8", scale_search=True, calibration=None)


@pytest.mark.parametrize("K", [96, 100])  # rows that begin with a block, and others
def test_error_feedback_keeps_to_the_grid_and_lowers_the_output_error(K):
    torch.manual_seed(0)
    weight, mix = torch.randn(40, K), torch.randn(K, K)
    x = torch.randn(500, K) @ mix
    moments = x.t() @ x / len(x)
    packed, state = F.quantize_4bit(weight, quant_type="nf4", scale_search=True)
    values = with_error_feedback(weight, moments, state.float_absmax(), 64, "nf4")
    codes = torch.ops.bnbx.encode_4bit(values, state.absmax, 64, "nf4", torch.uint8)
    assert torch.equal(F.dequantize_4bit(codes, state), values)
    before = ((weight - F.dequantize_4bit(packed, state)) @ x.t()).square().mean()
    assert ((weight - values) @ x.t()).square().mean() < 0.7 * before


def test_a_nan_in_a_row_takes_its_block_and_no_other():
    weight, moments = torch.randn(4, 128), torch.eye(128) + 0.1
    weight[1, 3] = float("nan")
    quantized = nn.Sequential(nn.Linear(128, 4, bias=False))
    quantized[0].weight.data = weight
    scales = F.quantize_4bit(weight, quant_type="nf4")[1].absmax
    is_nan = with_error_feedback(weight, moments, scales, 64, "nf4").isnan()
    assert is_nan[1, :64].all()
    assert is_nan.sum() == 64


class Carrying(nn.Module):
    """Passes on more than the hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, residual):
        y = self.down(torch.relu(self.up(x)))
        return y, residual + y


class Carried(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Carrying() for _ in range(3))

    def forward(self, x):
        residual = x
        for layer in self.layers:
            x, residual = layer(x, residual)
        return residual


def test_blocks_that_pass_on_more_than_one_tensor_come_layer_by_layer(monkeypatch):
    torch.manual_seed(0)
    carried, seen = Carried(), []
    monkeypatch.setattr(calibration, "_through", lambda *_, **__: seen.append(1) or iter(()))
    report = bnbx.quantize_(carried, calibration=[torch.randn(4, 64)], progress=False)
    assert seen == []
    assert len(report.layers) == 6


def test_moments_are_not_rounded_under_autocast():
    moments = calibration._Moments("a", calibration._Products(pairs=True))
    x = torch.randn(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        moments.add(nn.Identity(), (x,), {})
    assert torch.equal(moments.take_mean(), x.t() @ x / 32)


def test_layers_with_the_same_input_share_its_products():
    products = calibration._Products(pairs=False)
    first, second = (calibration._Moments(name, products) for name in "ab")
    x = torch.randn(2, 5, 16)
    expected = x.square().sum((0, 1))
    for moments in (first, second):
        moments.add(nn.Identity(), (x,), {})
    assert products.of(x) is products.of(x)
    first.add(nn.Identity(), (), {"input": x})
    x.mul_(3)  # the same tensor with other values
    second.add(nn.Identity(), (x,), {})
    assert torch.allclose(first.take_mean(), 2 * expected / 20)
    assert torch.allclose(second.take_mean(), 10 * expected / 20)
    with torch.inference_mode():  # such tensors do not tell that they have changed
        x = torch.ones(3, 4)
        before = products.of(x)
        x.mul_(2)
        assert torch.equal(products.of(x), 4 * before)
