"""What every module with a quantized weight must do, whatever its kind."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import safetensors.torch
import torch


def _saved_and_loaded(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _saved_and_loaded,
}
MOVES = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "to(dtype)": lambda m: m.to(torch.float16),
    "to(device, dtype)": lambda m: m.to("cpu", torch.bfloat16),
    "type": lambda m: m.type(torch.float16),
    "cpu": lambda m: m.cpu(),
    "to(tensor)": lambda m: m.to(torch.zeros(1, dtype=torch.float16)),
}


def statistics(module: Any) -> list[torch.Tensor]:
    return module.weight.statistics()


@pytest.mark.parametrize("way", COPIES)
def test_copies(kind: Any, way: str, same: Any) -> None:
    module, x = kind.quantized(), kind.input()
    y = module(x)
    other = COPIES[way](module)
    assert type(other.weight) is type(module.weight)
    assert torch.equal(other(x), y)
    assert same(other.state_dict(), module.state_dict())
    assert other.weight.__dict__.keys() == module.weight.__dict__.keys()
    if kind.is_4bit:
        assert other.quant_state is other.weight.quant_state
        assert other.weight.module is (module if way == "copy" else other)
    elif kind.is_linear:
        assert other.state.CB is other.weight.CB
        assert other.state.SCB is other.weight.SCB
    if way != "copy":
        for tensor in (other.weight.data, *statistics(other)):
            tensor.zero_()
        assert torch.equal(module(x), y)


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_unquantized_modules(kind: Any, way: str) -> None:
    module, x = kind.fresh(), kind.input()
    other = COPIES[way](module)
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(other.to("cpu")(x), module.to("cpu")(x))


@pytest.mark.parametrize("source", ["fresh", "quantized"])
@pytest.mark.parametrize(
    ("target", "assign"),
    [(t, a) for t in ("fresh", "quantized", "emptied") for a in (False, True)] + [("meta", True)],
)
def test_a_state_dict_loads(
    kind: Any, source: str, target: str, assign: bool, same: Any, saved: Any, device: str
) -> None:
    first, x = getattr(kind, source)(), kind.input(device)
    second = kind.quantized() if target == "quantized" else kind.fresh()
    if target in {"meta", "emptied"}:
        second.to("meta")
    if target == "emptied":
        second.to_empty(device=device)
    weight = second.weight
    state_dict = saved(first)
    result = second.load_state_dict(state_dict, strict=True, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert type(second.weight) is type(first.weight)
    assert (second.weight is weight) is not assign
    if source == "quantized" or target in {"fresh", "emptied"}:
        assert same(second.state_dict(), first.state_dict())
    first.to(device)
    second.to(device)
    assert torch.equal(second(x), first(x))
    shares = second.weight.data_ptr() == state_dict["weight"].data_ptr()
    assert shares is (assign and source == "quantized")


def test_a_loaded_module_does_not_share_the_checkpoint(kind: Any, saved: Any, same: Any) -> None:
    state_dict = saved(kind.quantized())
    module = kind.fresh()
    module.load_state_dict(state_dict)
    before = saved(module)
    for tensor in state_dict.values():
        tensor.zero_()
    assert same(module.state_dict(), before)


def test_every_missing_entry_is_an_error_and_changes_nothing(
    kind: Any, saved: Any, same: Any
) -> None:
    full = kind.quantized().state_dict()
    for module in (kind.fresh(), kind.quantized()):
        before, weight = saved(module), module.weight
        for key in full:
            state_dict = {k: v for k, v in full.items() if k != key}
            if key == "weight_format":
                continue
            name = key.rpartition("quant_state.")[2].removeprefix("weight.")
            name = name if "bitsandbytes__" not in name else "quant_type"
            with pytest.raises(RuntimeError, match=name):
                module.load_state_dict(state_dict)
            assert same(module.state_dict(), before), key
            assert module.weight is weight


@pytest.mark.parametrize("assign", [False, True])
def test_every_wrong_entry_is_an_error_and_changes_nothing(
    kind: Any, assign: bool, saved: Any, same: Any
) -> None:
    full = saved(kind.quantized())
    wrong = {
        "longer": lambda t: torch.cat([t.view(-1), t.view(-1)]),
        "shorter": lambda t: t.view(-1)[: t.numel() // 2],
        "int64": lambda t: t.long(),
    }
    for module in (kind.fresh(), kind.quantized()):
        before, weight, parameters = saved(module), module.weight, dict(module.named_parameters())
        for key, value in full.items():
            for what, change in wrong.items():
                if (key == "weight_format" and what != "longer") or (key, what) == (
                    "bias",
                    "int64",
                ):
                    continue  # A number 0 is a number 0, and torch converts biases.
                with pytest.raises(RuntimeError):
                    module.load_state_dict({**full, key: change(value)}, assign=assign)
                assert same(module.state_dict(), before), (key, what)
                assert module.weight is weight
                assert all(module.get_parameter(k) is p for k, p in parameters.items())


def test_an_unexpected_entry_is_an_error_and_changes_nothing(
    kind: Any, saved: Any, same: Any
) -> None:
    module = kind.quantized()
    before = saved(module)
    names = ["other", "weight.other"] if kind.is_4bit else ["other"]
    for name in names:
        state_dict = {**kind.quantized().state_dict(), name: torch.zeros(1)}
        with pytest.raises(RuntimeError, match="other"):
            module.load_state_dict(state_dict)
        assert same(module.state_dict(), before)


def test_a_weight_of_another_shape_is_an_error(kind: Any, saved: Any, same: Any) -> None:
    module = kind.fresh()
    before = saved(module)
    wider = torch.nn.Linear(2 * module.weight.shape[1], module.weight.shape[0], bias=False)
    other = copy.deepcopy(module.weight).like(wider.weight.data).to("cpu")
    state_dict = kind.quantized().state_dict()
    state_dict["weight"] = other.data
    if kind.is_4bit:
        for name, value in other.quant_state.as_dict(packed=True).items():
            state_dict[f"weight.{name}"] = value
    with pytest.raises(RuntimeError, match="shape"):
        module.load_state_dict(state_dict)
    assert same(module.state_dict(), before)


def test_partial_state_dicts_load_without_strict(kind: Any, saved: Any, same: Any) -> None:
    module = kind.quantized()
    before = saved(module)
    result = module.load_state_dict({}, strict=False)
    assert "weight" not in result.unexpected_keys
    assert same(module.state_dict(), before)
    with pytest.raises(RuntimeError, match="weight"):
        module.load_state_dict({}, strict=True)
    assert same(module.state_dict(), before)


def test_a_module_on_meta_needs_assign(kind: Any) -> None:
    module = kind.fresh().to("meta")
    # torch warns about the bias.
    warning = pytest.warns(UserWarning, match="no-op") if kind.is_linear else nullcontext()
    with warning, pytest.raises(RuntimeError, match="assign"):
        module.load_state_dict(kind.quantized().state_dict())
    assert module.weight.is_meta


def test_a_model_goes_through_safetensors(kind: Any, same: Any) -> None:
    model = torch.nn.Sequential(kind.quantized(), torch.nn.LayerNorm(3), kind.quantized())
    state_dict = safetensors.torch.load(safetensors.torch.save(model.state_dict()))
    other = torch.nn.Sequential(kind.fresh(), torch.nn.LayerNorm(3), kind.fresh())
    other.load_state_dict(state_dict, strict=True)
    assert same(other.state_dict(), model.state_dict())


def test_a_state_dict_is_of_plain_tensors(kind: Any) -> None:
    buffer = io.BytesIO()
    state_dict = kind.quantized().state_dict()
    assert {type(value) for value in state_dict.values()} == {torch.Tensor}
    torch.save(state_dict, buffer)
    buffer.seek(0)
    assert list(torch.load(buffer, weights_only=True)) == list(state_dict)
    kept = kind.quantized().state_dict(keep_vars=True)
    assert type(kept["weight"]) is type(kind.fresh().weight)


@pytest.mark.parametrize("move", MOVES)
def test_moves_keep_quantized_data(kind: Any, move: str, saved: Any, same: Any) -> None:
    module, x = kind.quantized(), kind.input()
    before, y = saved(module), module(x)
    weight = module.weight
    assert MOVES[move](module) is module
    after = saved(module)
    bias = after.pop("bias", None), before.pop("bias", None)
    assert same(after, before)
    assert module.weight is weight
    if bias[0] is not None:
        assert torch.equal(bias[0], bias[1].to(bias[0].dtype))
    if move != "double":  # No operation takes float64.
        torch.testing.assert_close(module(x), y, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("move", MOVES)
def test_moves_of_an_unquantized_weight(kind: Any, move: str) -> None:
    module = kind.fresh()
    plain = torch.nn.Linear(1, 1, bias=False)
    plain.weight = torch.nn.Parameter(module.weight.detach().clone())
    for m in (module, plain):
        MOVES[move](m)
    quantizes = move in {"cpu", "to(device, dtype)", "to(tensor)"}
    assert module.weight.holds_codes is quantizes
    if not quantizes:
        assert module.weight.dtype == plain.weight.dtype
        assert torch.equal(module.weight, plain.weight)


def test_to_meta_and_back(kind: Any, saved: Any, same: Any, device: str) -> None:
    module, x = kind.quantized(device), kind.input(device)
    y, before = module(x), saved(module)
    data, shared = module.weight.data, copy.copy(module.weight)
    module.to("meta")
    assert module.weight.is_meta
    assert type(module.weight) is type(shared)
    assert all(not t.is_meta for t in shared.statistics())
    with pytest.raises(NotImplementedError):
        module.to(device)
    # Back with the data alone, as accelerate's offloading does it ...
    weight = type(shared)(data, requires_grad=False, **module.weight.__dict__).to(device)
    module.to_empty(device=device)
    module.weight = weight
    if kind.is_linear:
        module.bias.data.copy_(before["bias"])
    assert torch.equal(module(x), y)
    # ... and with everything.
    module.to("meta").to_empty(device=device)
    module.load_state_dict(before)
    assert same(module.state_dict(), before)
    assert torch.equal(module(x), y)


def test_moves_with_swapped_tensors(kind: Any, same: Any) -> None:
    first = kind.fresh()
    second = copy.deepcopy(first)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        second.to("cpu").half().to("meta").to_empty(device="cpu")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    first.to("cpu").half()
    assert type(second.weight) is type(first.weight)
    second.load_state_dict(first.state_dict())
    assert same(second.state_dict(), first.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_forward_pass_changes_nothing(
    kind: Any, dtype: torch.dtype, saved: Any, same: Any
) -> None:
    module, x = kind.quantized(), kind.input(dtype=dtype)
    before, parameters = saved(module), dict(module.named_parameters())
    decoded = module.weight.dequantize()
    for training in (False, True, False):
        module.train(training)
        module(x)
        assert same(module.state_dict(), before)
        assert torch.equal(module.weight.dequantize(), decoded)
        for name, parameter in module.named_parameters():
            assert parameter is parameters[name]
            assert parameter.dtype == before[name].dtype
            assert parameter.grad is None


def test_eval_then_train_is_train(kind: Any) -> None:
    first = kind.quantized()
    second = copy.deepcopy(first)
    second.eval()
    with torch.no_grad():
        second(kind.input())
    second.train()
    gradients = []
    x = kind.input()
    for module in (first, second):
        if kind.is_linear:
            x = x.detach().requires_grad_()
            module(x).square().sum().backward()
            gradients.append((x.grad, module.bias.grad))
        else:
            gradients.append((module(x),))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
        assert a.abs().sum() > 0


def test_a_module_that_is_not_quantized_says_so(kind: Any, saved: Any, same: Any) -> None:
    module, x = kind.fresh(), kind.input()
    before = saved(module)
    if kind.is_linear and not kind.is_4bit:
        assert torch.equal(module(x), copy.deepcopy(module).to("cpu")(x))
        assert module.state.CB is None
    else:
        with pytest.raises(RuntimeError, match=r"not quantized yet: call \.to\(device\)"):
            module(x)
    assert same(module.state_dict(), before)


def test_tied_weights_stay_tied(kind: Any, same: Any) -> None:
    model = torch.nn.ModuleList([kind.fresh(), kind.fresh()])
    model[1].weight = model[0].weight
    x = kind.input()
    model.to("cpu")
    assert model[1].weight is model[0].weight
    assert model[0].weight.holds_codes
    if kind.is_4bit:
        assert model[1].quant_state is model[0].quant_state
    elif kind.is_linear:
        assert model[1].state.SCB is model[0].state.SCB
    model.half()
    other = torch.nn.ModuleList([kind.quantized(), kind.quantized()])
    other[1].weight = other[0].weight
    if kind.is_linear:
        other[1].bias = other[0].bias
        model[1].bias = model[0].bias
    other.load_state_dict(model.state_dict())
    assert other[1].weight is other[0].weight
    assert torch.equal(other[1](x), other[0](x))
    copied = copy.deepcopy(model)
    assert copied[1].weight is copied[0].weight
    assert same(copied.state_dict(), model.state_dict())


def test_a_weight_made_by_the_constructor_from_another_ones_attributes(kind: Any) -> None:
    module, x = kind.quantized(), kind.input()
    y = module(x)
    data = module.weight.data
    new = type(module.weight)(data, requires_grad=False, **module.weight.__dict__)
    assert new.__dict__.keys() == module.weight.__dict__.keys()
    module.weight = new
    assert torch.equal(module(x), y)


def test_accelerate_makes_modules_on_meta(kind: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        module = kind.fresh()
    assert module.weight.is_meta
    assert type(module.weight) is type(kind.fresh().weight)
    module.load_state_dict(kind.quantized().state_dict(), assign=True)
    assert torch.isfinite(module(kind.input())).all()
