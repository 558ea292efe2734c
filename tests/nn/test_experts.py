"""Experts in 4 bits: a module marked as those of transformers, against a loop over its experts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import parametrize

import bnbx
from bnbx.nn.experts import expert_weights
from bnbx.nn.parametrize import replace_parameter_4bit

EXPERTS, HIDDEN, INNER = 5, 64, 96
CHOICES = 2


class Experts(torch.nn.Module):
    """Experts with the attributes that ``use_experts_implementation`` of transformers sets."""

    def __init__(self, *, gate=True, bias=False, transposed=False, norm=False, dtype=torch.float32):
        super().__init__()
        self.has_gate, self.has_bias = gate, bias
        self.is_transposed, self.has_post_expert_norm = transposed, norm
        width = 2 * INNER if gate else INNER
        for name, (rows, columns) in zip(
            expert_weights(self), ((width, HIDDEN), (HIDDEN, INNER)), strict=True
        ):
            shape = (columns, rows) if transposed else (rows, columns)
            weight = torch.randn(EXPERTS, *shape) / columns**0.5
            setattr(self, name, torch.nn.Parameter(weight.to(dtype)))
            if bias:
                values = torch.randn(EXPERTS, rows).to(dtype)
                setattr(self, f"{name}_bias", torch.nn.Parameter(values))
        self.act_fn = torch.nn.SiLU()
        self.post_expert_norm = torch.nn.RMSNorm(HIDDEN, dtype=dtype) if norm else None

    def _apply_gate(self, x):
        gate, up = x.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def _expert(self, e, x):
        for i, name in enumerate(expert_weights(self)):
            if i:
                x = self._apply_gate(x) if self.has_gate else self.act_fn(x)
            weight = getattr(self, name)[e]
            x = x @ (weight if self.is_transposed else weight.t())
            if self.has_bias:
                x = x + getattr(self, f"{name}_bias")[e]
        return self.post_expert_norm(x) if self.has_post_expert_norm else x

    def forward(self, hidden_states, top_k_index, top_k_weights):
        rows = []
        for x, chosen, shares in zip(hidden_states, top_k_index, top_k_weights, strict=True):
            parts = [
                self._expert(int(e), x) * share
                for e, share in zip(chosen, shares, strict=True)
                if e < EXPERTS
            ]
            rows.append(sum(parts, torch.zeros_like(x)))
        return torch.stack(rows).to(hidden_states.dtype)


KINDS = {
    "gate": {},
    "no gate": {"gate": False},
    "bias": {"bias": True},
    "transposed with bias": {"transposed": True, "bias": True},
    "transposed": {"transposed": True},
    "norm": {"norm": True},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def routed(tokens=9, dtype=torch.float32, experts=EXPERTS):
    """Return hidden states, the experts of each token and their shares."""
    index = torch.stack([torch.randperm(experts)[:CHOICES] for _ in range(tokens)])
    return torch.randn(tokens, HIDDEN).to(dtype), index, torch.rand(tokens, CHOICES)


def both(kind, dtype=torch.float32, **settings):
    """Return quantized experts, and the same with their decoded weights."""
    model = torch.nn.Sequential(Experts(**kind, dtype=dtype))
    report = bnbx.quantize_(model, "nf4", progress=False, **settings)
    assert len(report.layers) == 2
    decoded = bnbx.dequantize_(copy.deepcopy(model))
    return model[0], decoded[0]


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_is_that_of_the_decoded_experts(kind, dtype, double_quant):
    quantized, decoded = both(kind, dtype, double_quant=double_quant)
    assert type(decoded) is Experts
    args = routed(dtype=dtype)
    out = quantized(*args)
    assert out.dtype is dtype
    tolerance = 1e-4 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(out, decoded(*args), rtol=tolerance, atol=tolerance)


def test_nothing_is_decoded(kind, monkeypatch):
    quantized, _ = both(kind)
    monkeypatch.setattr(
        "bnbx.nn.parametrize.dequantize_4bit", lambda *_: pytest.fail("it was decoded")
    )
    quantized(*routed())


def test_the_memory_is_that_of_the_codes(kind):
    experts = Experts(**kind, dtype=torch.bfloat16)
    before = sum(getattr(experts, name).nbytes for name in expert_weights(experts))
    model = torch.nn.Sequential(experts)
    report = bnbx.quantize_(model, "nf4", progress=False)
    quantized(model)
    stored = [
        *model.parameters(),
        *(stack[0].quant_state.absmax for stack in experts.parametrizations.values()),
    ]
    small = sum(p.nbytes for name, p in model.named_parameters() if "original" not in name)
    after = sum(tensor.nbytes for tensor in stored) - small
    assert report.bytes_before == before
    assert after < 0.27 * before
    assert report.bytes_after < 0.4 * before  # with tables of one kilobyte each


def quantized(model):
    """Run experts once, so that anything that a forward keeps is there."""
    with torch.no_grad():
        model[0](*routed(dtype=torch.bfloat16))


def test_gradients_reach_input_shares_and_biases(kind):
    experts, decoded = both(kind)
    x, index, shares = routed()
    grads = []
    for module in (experts, decoded):
        inputs = x.clone().requires_grad_(), shares.clone().requires_grad_()
        module.zero_grad()
        out = module(inputs[0], index, inputs[1])
        out.square().sum().backward()
        named = dict(module.named_parameters())
        biases = [named[name].grad for name in named if "bias" in name or "norm" in name]
        grads.append([*(t.grad for t in inputs), *biases])
        weights = [p for name, p in named.items() if "original" in name]
        assert all(p.grad is None for p in weights)
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_experts_that_do_not_exist_add_nothing(kind):
    experts, decoded = both(kind)
    x, index, shares = routed()
    index[0, 0] = index[4, 1] = EXPERTS
    index[5] = EXPERTS
    x.requires_grad_()
    out = experts(x, index, shares)
    torch.testing.assert_close(out, decoded(x, index, shares), rtol=1e-4, atol=1e-4)
    assert (out[5] == 0).all()
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[5] == 0).all()


def test_no_tokens(kind):
    experts, _ = both(kind)
    out = experts(torch.zeros(0, HIDDEN), torch.zeros(0, CHOICES).long(), torch.zeros(0, CHOICES))
    assert out.shape == (0, HIDDEN)


def test_autocast_and_compute_dtype(monkeypatch):
    seen = []
    multiply = bnbx.nn.experts.matmul_4bit_grouped
    monkeypatch.setattr(
        bnbx.nn.experts,
        "matmul_4bit_grouped",
        lambda rows, *args, **kwargs: seen.append(rows.dtype) or multiply(rows, *args, **kwargs),
    )
    experts, _ = both({})
    args = routed()
    with torch.autocast("cpu", torch.bfloat16):
        assert experts(*args).dtype is torch.float32
    assert seen == [torch.bfloat16] * 2
    experts, _ = both({}, compute_dtype=torch.float16)
    assert experts(*args).dtype is torch.float32
    assert seen[2:] == [torch.float16] * 2


def test_an_adapter_on_top_of_the_weights_is_not_passed_by():
    class Plus(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.delta = torch.nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN) / 8)

        def forward(self, weight):
            return weight + self.delta

    experts, decoded = both({})
    plus = Plus()
    parametrize.register_parametrization(experts, "gate_up_proj", plus)
    with torch.no_grad():
        decoded.gate_up_proj += plus.delta
    args = routed()
    out = experts(*args)
    torch.testing.assert_close(out, decoded(*args), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert plus.delta.grad.abs().sum() > 0


def test_only_one_of_the_weights_in_4_bits():
    experts = Experts()
    args = routed()
    replace_parameter_4bit(experts, "down_proj")
    expected = copy.deepcopy(experts)
    bnbx.dequantize_(expected)
    torch.testing.assert_close(experts(*args), expected(*args))


def test_the_names_of_bitsandbytes_lead_to_the_grouped_product(monkeypatch):
    experts = Experts()
    for name in expert_weights(experts):
        replace_parameter_4bit(experts, name)
    monkeypatch.setattr(
        "bnbx.nn.parametrize.dequantize_4bit", lambda *_: pytest.fail("it was decoded")
    )
    experts(*routed())


def test_saving_and_loading(kind):
    saved, loaded = (both(kind)[0] for _ in range(2))
    args = routed()
    entries = saved.state_dict()
    assert {*expert_weights(saved)} <= entries.keys()
    assert not torch.equal(saved(*args), loaded(*args))
    loaded.load_state_dict(entries)
    assert torch.equal(saved(*args), loaded(*args))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_without_graph_breaks(kind):
    experts, _ = both(kind)
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    for tokens in (9, 4):
        args = routed(tokens)
        torch.testing.assert_close(compiled(*args), experts(*args))


REASONS = [
    ({"kind": "int8"}, "int8 has no product with a stack"),
    ({"quant_storage": torch.bfloat16}, "cannot be stored as torch.bfloat16"),
    ({"blocksize": 4096}, "64 x 96 weights of its down_proj are no blocks of 4096"),
    ({"skip": "experts"}, "skip entry 'experts'"),
    ({"skip": "*.down_proj"}, "skip entry '*.down_proj'"),
]


@pytest.mark.parametrize(("settings", "reason"), REASONS)
def test_experts_are_left_with_a_reason(settings, reason):
    model = torch.nn.ModuleDict({"experts": Experts()})
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = bnbx.quantize_(model, progress=False, **settings)
    assert not report.layers
    assert not report.unused_skips
    assert reason in report.skipped["experts"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_experts_that_share_a_weight_are_left():
    model = torch.nn.ModuleDict({"a": Experts(), "b": Experts(), "c": Experts()})
    model["b"].down_proj = model["a"].down_proj
    model["c"].shared = model["c"].up = torch.nn.Parameter(model["c"].gate_up_proj.data)
    report = bnbx.quantize_(model, progress=False)
    assert not report.layers
    assert set(report.skipped) == {"a", "b", "c"}
    assert all("tied to" in reason for reason in report.skipped.values())
    assert bnbx.quantize_(torch.nn.ModuleList([Experts()]), progress=False).layers


def test_quantizing_twice_changes_nothing():
    model = torch.nn.ModuleDict({"experts": Experts()})
    bnbx.quantize_(model, progress=False)
    before = model["experts"].gate_up_proj
    report = bnbx.quantize_(model, progress=False)
    assert report.skipped == {"experts": "it is quantized"}
    assert torch.equal(model["experts"].gate_up_proj, before)
