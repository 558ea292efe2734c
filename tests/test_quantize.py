"""quantize_ and dequantize_ on models."""

from __future__ import annotations

import copy
import sys
import weakref
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from bnbx import nn
from bnbx.quantize import QuantizationReport, convert, dequantize_, quantize_

KINDS = ["nf4", "fp4", "int8"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Own(torch.nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


class Renamed(torch.nn.Linear):
    """A linear layer in all but name."""


class Conv1D(torch.nn.Module):
    """As in transformers: the transpose of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Model(torch.nn.Module):
    """A language model with one of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 64)
        self.up = torch.nn.Linear(64, 96)
        self.down = Renamed(96, 64, bias=False)
        self.conv = Conv1D()
        self.own = Own(64, 64)
        self.attention = torch.nn.MultiheadAttention(64, 2, batch_first=True)
        self.head = torch.nn.Linear(64, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x = self.own(self.conv(self.down(self.up(x).relu())))
        x = self.attention(x, x, x)[0]
        return self.head(x)


def quiet(model: Any, *args: Any, **kwargs: Any) -> QuantizationReport:
    return quantize_(model, *args, progress=False, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_is_quantized_and_restored(kind: str, dtype: torch.dtype, device: str) -> None:
    model = Model().to(device, dtype)
    original, names = copy.deepcopy(model), list(model.state_dict())
    report = quiet(model, kind)
    assert [layer.name for layer in report.layers] == ["up", "down"]
    cls = nn.Linear8bitLt if kind == "int8" else nn.Linear4bit
    for layer, shape in zip((model.up, model.down), [(96, 64), (64, 96)], strict=True):
        assert isinstance(layer, cls)
        assert layer.weight.holds_codes
        assert layer.weight.device == original.up.weight.device
        assert (layer.out_features, layer.in_features) == shape
    assert torch.equal(model.up.bias, original.up.bias)
    assert model.down.bias is None
    assert model.head.weight is model.embedding.weight

    expected = model.up.weight.dequantize().to(dtype)
    ids = torch.randint(0, 50, (2, 7), device=device)
    y = model(ids)
    assert y.dtype == dtype
    assert dequantize_(model) is model
    assert type(model.up) is torch.nn.Linear
    assert model.up.weight.dtype == dtype
    assert torch.equal(model.up.weight, expected)
    assert model.up.weight.requires_grad
    assert list(model.state_dict()) == names
    assert close(model(ids), y)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they differ by no more than int8 activations and 16-bit rounding explain."""
    return bool((a - b).float().norm() < 0.05 * b.float().norm())


@pytest.mark.parametrize("kind", KINDS)
def test_the_report(kind: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(640, 32), torch.nn.Linear(32, 8)).bfloat16()
    weights = [layer.weight.detach().float() for layer in model]
    report = quiet(model, kind)
    for layer, entry, weight in zip(model, report.layers, weights, strict=True):
        decoded = layer.weight.dequantize().float()
        error = ((weight - decoded).norm() / weight.norm()).item()
        assert entry.relative_error == pytest.approx(error, rel=1e-4)
        assert 0.0 < error < 0.2
        assert (entry.kind, entry.shape) == (kind, tuple(weight.shape))
        assert entry.bytes_before == 2 * weight.numel()
    assert [entry.name for entry in report.layers] == ["0", "1"]
    stats = 32 * 4 if kind == "int8" else 320 + 2 * 4 + 4 * (16 + 256 + 1)
    codes = 640 * 32 // (1 if kind == "int8" else 2)
    assert abs(report.layers[0].bytes_after - codes - stats) <= 8
    assert report.bytes_before == 2 * (640 * 32 + 32 * 8)
    assert report.bytes_after == sum(entry.bytes_after for entry in report.layers)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "before", "after", "error"]
    assert lines[1].split()[:6] == ["0", kind, "32x640", "40.0", "KiB", lines[1].split()[5]]
    assert lines[3].startswith("2 layers")
    assert len(lines) == 4


def test_what_is_skipped_and_why() -> None:
    report = quiet(Model())
    reasons = {
        "conv": "it is a Conv1D, not a torch.nn.Linear",
        "own": "it is a Own with a forward of its own",
        "attention.out_proj": "the module that it belongs to reads its weight directly",
        "head": "tied to embedding.weight, which is not quantized",
    }
    assert report.skipped == reasons
    for name, reason in reasons.items():
        assert f"skipped {name}: {reason}" in str(report).splitlines()


def test_more_that_is_skipped() -> None:
    def linear(**settings: Any) -> torch.nn.Linear:
        return torch.nn.Linear(64, 4, **settings)

    patched, pruned, normed = linear(), linear(), linear()
    empty = linear()
    empty.weight = torch.nn.Parameter(torch.empty(0, 64))
    patched.forward = lambda x: x
    prune.l1_unstructured(pruned, "weight", 0.5)
    torch.nn.utils.parametrizations.weight_norm(normed)
    model = torch.nn.ModuleDict(
        {
            "meta": linear(device="meta"),
            "wide": linear(dtype=torch.float64),
            "empty": empty,
            "quantized": nn.LinearNF4(64, 4).to("cpu"),
            "patched": patched,
            "pruned": pruned,
            "normed": normed,
        }
    )
    report = quiet(model)
    assert report.layers == ()
    plain = "its weight is not a plain parameter"
    assert report.skipped == {
        "meta": "its weight is on the meta device",
        "wide": "its weight is torch.float64",
        "empty": "its weight is empty",
        "quantized": "it is quantized",
        "patched": "it is a Linear with a forward of its own",
        "pruned": plain,
        "normed": plain,
    }


def blocks() -> torch.nn.Module:
    def block() -> torch.nn.Module:
        return torch.nn.ModuleDict({n: torch.nn.Linear(8, 8) for n in ("query", "key")})

    return torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([block(), block()]), "head": torch.nn.Linear(8, 4)}
    )


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ("head", ["head"]),
        (["layers.0.key", "head"], ["layers.0.key", "head"]),
        ("key", ["layers.0.key", "layers.1.key"]),
        ("layers.1", ["layers.1.query", "layers.1.key"]),
        ("layers", ["layers.0.query", "layers.0.key", "layers.1.query", "layers.1.key"]),
        ("*.key", ["layers.0.key", "layers.1.key"]),
        (["layers.[!0].*"], ["layers.1.query", "layers.1.key"]),
        (lambda name, _: name.startswith("layers.1"), ["layers.1.query", "layers.1.key"]),
        (lambda _, module: module.out_features == 4, ["head"]),
        ((), []),
    ],
)
def test_skip(skip: Any, left: list[str]) -> None:
    model = blocks()
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    report = quiet(model, skip=skip)
    assert list(report.skipped) == left
    assert [layer.name for layer in report.layers] == [name for name in linear if name not in left]
    for name in linear:
        assert isinstance(model.get_submodule(name), nn.Linear4bit) is (name not in left)


def test_a_skip_entry_must_be_a_name() -> None:
    with pytest.raises(ValueError, match="skip"):
        quiet(blocks(), skip=["head", 3])


def test_a_skip_entry_that_names_nothing_is_reported() -> None:
    report = quiet(blocks(), skip=["head", "lm_head", "quer"])
    assert report.unused_skips == ("lm_head", "quer")
    assert "skip entry 'lm_head' is the name of no layer" in str(report)


def test_untie() -> None:
    model = Model()
    embedding = model.embedding.weight
    report = quiet(model, untie=True)
    assert "head" in [layer.name for layer in report.layers]
    assert model.head.weight.holds_codes
    assert model.embedding.weight is embedding
    assert not hasattr(embedding, "quant_state")


@pytest.mark.parametrize("kind", KINDS)
def test_layers_tied_to_each_other_stay_tied(kind: str) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(64, 64) for _ in range(3)])
    model[1].weight = model[0].weight
    model[2].weight = torch.nn.Parameter(model[0].weight.data)  # the same memory
    report = quiet(model, kind)
    assert len(report.layers) == 3
    assert model[1].weight is model[0].weight
    assert model[2].weight is model[0].weight
    assert [layer.bytes_before for layer in report.layers] == [64 * 64 * 4, 0, 0]
    assert len({layer.relative_error for layer in report.layers}) == 1
    x = torch.randn(2, 64)
    y = [layer(x) for layer in model]
    dequantize_(model)
    assert model[1].weight is model[0].weight
    for layer, expected in zip(model, y, strict=True):
        assert close(layer(x), expected)


def test_a_layer_with_two_names_is_one_layer() -> None:
    model = blocks()
    model.alias = model["head"]
    report = quiet(model, skip="layers")
    assert [layer.name for layer in report.layers] == ["head"]
    assert model.alias is model["head"]
    assert isinstance(model.alias, nn.Linear4bit)
    dequantize_(model)
    assert model.alias is model["head"]
    assert type(model.alias) is torch.nn.Linear
    assert quiet(model, skip="alias").skipped["head"] == "skip entry 'alias'"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_attached_to_a_layer_stays(kind: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    calls: list[str] = []
    handle = model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[0].note = "mine"
    model[0].bias.requires_grad_(False)
    bias = model[0].bias
    model[0].eval()
    quiet(model, kind)
    assert model[0].note == "mine"
    assert model[0].bias is bias
    assert not model[0].bias.requires_grad
    assert model[1].bias.requires_grad
    assert not model[0].training
    assert model[1].training
    if kind == "int8":
        assert [layer.state.is_training for layer in model] == [False, True]
    model(torch.randn(2, 64, requires_grad=True)).sum().backward()
    assert calls == ["before", "forward", "backward"]
    handle.remove()
    dequantize_(model)
    calls.clear()
    model(torch.randn(2, 64, requires_grad=True)).sum().backward()
    assert calls == ["before", "backward"]
    assert model[0].note == "mine"
    assert not model[0].training
    assert vars(model[0]).keys() - {"note"} == vars(torch.nn.Linear(1, 1)).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_freed_as_it_goes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    quantized = convert._quantized

    def counting(*args: Any) -> Any:
        alive.append(sum(ref() is not None for ref in weights))
        return quantized(*args)

    monkeypatch.setattr(convert, "_quantized", counting)
    quiet(model, kind)
    assert alive == [4, 3, 2, 1]
    assert all(ref() is None for ref in weights)


def test_the_error_of_a_weight_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        model = torch.nn.Sequential(torch.nn.Linear(100, 700))
        whole = quiet(copy.deepcopy(model), kind).layers[0].relative_error
        monkeypatch.setattr(convert, "CHUNK", 64 * 256)
        assert quiet(model, kind).layers[0].relative_error == pytest.approx(whole, rel=1e-6)
        monkeypatch.undo()


def test_a_weight_of_zeros_and_one_that_is_not_finite() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Linear(64, 4))
    torch.nn.init.zeros_(model[0].weight)
    model[1].weight.data[0, 0] = float("nan")
    errors = [layer.relative_error for layer in quiet(model).layers]
    assert errors[0] == 0.0
    assert errors[1] != errors[1]


def test_settings_reach_the_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 4))
    quiet(
        model,
        "fp4",
        double_quant=False,
        compute_dtype=torch.bfloat16,
        blocksize=128,
        quant_storage=torch.float16,
    )
    layer = model[0]
    assert layer.compute_dtype == torch.bfloat16
    assert layer.weight.dtype == layer.quant_storage == torch.float16
    state = layer.quant_state
    assert (state.quant_type, state.blocksize, state.nested) == ("fp4", 128, False)
    model = torch.nn.Sequential(torch.nn.Linear(256, 4))
    quiet(model, "int8", threshold=3.0)
    assert model[0].state.threshold == 3.0
    assert not model[0].state.has_fp16_weights


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        ("int4", {}, "kind"),
        ("nf4", {"threshold": 0.0}, "threshold"),
        ("nf4", {"blocksize": 63}, "blocksize"),
        ("nf4", {"quant_storage": torch.int8}, "quant_storage"),
        ("int8", {"blocksize": 128}, "blocksize"),
        ("int8", {"double_quant": False}, "double_quant"),
        ("int8", {"compute_dtype": torch.float16}, "compute_dtype"),
        ("int8", {"quant_storage": torch.float16}, "quant_storage"),
        ("int8", {"threshold": -1.0}, "threshold"),
    ],
)
def test_wrong_settings_are_refused_before_anything_changes(
    kind: str, settings: dict[str, Any], name: str
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 4))
    with pytest.raises(ValueError, match=f"^{name}: "):
        quiet(model, kind, **settings)
    assert type(model[0]) is torch.nn.Linear


def test_a_linear_layer_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="model"):
        quiet(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="model"):
        dequantize_(nn.LinearNF4(4, 4).to("cpu"))


def test_dequantize_after_loading_codes_takes_the_dtype_of_the_other_parameters() -> None:
    """The int8 format does not say what the weights were."""

    def layers(linear):
        return torch.nn.Sequential(torch.nn.LayerNorm(64), linear).bfloat16()

    source = layers(torch.nn.Linear(64, 4, bias=False))
    quiet(source, "int8")
    model = layers(nn.Linear8bitLt(64, 4, bias=False, has_fp16_weights=False))
    with torch.device("meta"):
        model[1].weight = nn.Int8Params(torch.empty(4, 64, dtype=torch.int8))
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    assert dequantize_(model)(x).dtype == torch.bfloat16
    assert torch.equal(model[1].weight, dequantize_(source)[1].weight)


def test_dequantize_to_a_dtype_and_without_quantized_layers() -> None:
    for kind in KINDS:
        model = torch.nn.Sequential(torch.nn.Linear(64, 4).bfloat16())
        quiet(model, kind)
        values = model[0].weight.dequantize().half()
        assert torch.equal(dequantize_(model, torch.float16)[0].weight, values)
    plain = blocks()
    before = plain.state_dict()
    dequantize_(plain)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    model = torch.nn.Sequential(nn.LinearNF4(64, 4))
    weight = model[0].weight.detach().clone()
    assert torch.equal(dequantize_(model)[0].weight, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_goes_through_a_state_dict(kind: str) -> None:
    first, second = blocks(), blocks()
    quiet(first, kind)
    quiet(second, kind)
    second.load_state_dict(first.state_dict(), strict=True)
    x = torch.randn(3, 8)
    assert torch.equal(second["head"](x), first["head"](x))


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    quantize_(blocks())
    assert "quantizing to nf4: 100%" in capsys.readouterr().err
    quantize_(blocks(), progress=False)
    assert capsys.readouterr().err == ""


def test_no_progress_bar_without_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert len(quantize_(blocks()).layers) == 5
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_transformer_layer_takes_no_shortcut_around_the_layers(kind: str) -> None:
    # In eval mode without gradients it reads the weights of its linear layers itself, if it may.
    model = torch.nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)
    report = quiet(model, kind)
    assert [layer.name for layer in report.layers] == ["linear1", "linear2"]
    x = torch.randn(2, 5, 64)
    expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-3, atol=1e-3)
