"""Saved states: going on from one, and what happens with one that does not fit."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from bnbx.codebooks import create_dynamic_map, create_linear_map
from bnbx.optim import (
    Adam,
    Adam8bit,
    Adam32bit,
    AdEMAMix,
    AdEMAMix8bit,
    Lion,
    Lion8bit,
)

from .families import every_maker

WRAPPER = "__bnb_optimizer_quant_state__"
SHAPES = [(20, 30), (700,), (5,), ()]


def parameters(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in SHAPES
    ]


def train(optimizer, seed, steps=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator).to(p)
        optimizer.step()


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def flat(state_dict):
    state = {
        key: {"step": entry["step"], **entry[WRAPPER]} for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def snapshot(optimizer):
    return copy.deepcopy(optimizer.state_dict())


def assert_same(first, second):
    """Both state_dicts hold the same, to the bit."""
    assert first["param_groups"] == second["param_groups"]
    first, second = flat(first)["state"], flat(second)["state"]
    assert first.keys() == second.keys()
    for number, entries in first.items():
        assert entries.keys() == second[number].keys()
        for key, value in entries.items():
            other = second[number][key]
            assert value == other if key == "step" else torch.equal(value, other)


@every_maker
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", [copy.deepcopy, saved_and_loaded, flat])
def test_going_on_from_a_checkpoint_is_exact(cls, dtype, way, device):
    straight = cls(parameters(device, dtype), lr=0.1, weight_decay=0.1, min_8bit_size=64)
    train(straight, 1)
    first = cls(parameters(device, dtype), lr=0.1, weight_decay=0.1, min_8bit_size=64)
    train(first, 1)
    second = cls(first.param_groups[0]["params"], min_8bit_size=64)
    second.load_state_dict(way(first.state_dict()))
    for optimizer in (straight, second):
        train(optimizer, 2)
    for p, q in zip(
        straight.param_groups[0]["params"], second.param_groups[0]["params"], strict=True
    ):
        assert torch.equal(p, q)
    assert_same(straight.state_dict(), second.state_dict())


@pytest.mark.parametrize("cls", [Adam8bit, Adam32bit])
def test_layout(cls, device):
    optimizer = cls(parameters(device, torch.bfloat16), min_8bit_size=64)
    train(optimizer, 1)
    state_dict = optimizer.state_dict()
    assert state_dict["param_groups"][0]["params"] == [0, 1, 2, 3]
    for number, shape in enumerate(SHAPES):
        entry = state_dict["state"][number]
        assert entry.keys() == {"step", WRAPPER}
        assert entry["step"] == 3
        assert type(entry["step"]) is int
        layout = {key: (t.dtype, t.shape) for key, t in entry[WRAPPER].items()}
        if cls is Adam8bit and number < 2:
            blocks = {"absmax1": (torch.float32, (3,)), "absmax2": (torch.float32, (3,))}
            maps = {"qmap1": (torch.float32, (256,)), "qmap2": (torch.float32, (256,))}
            states = {"state1": (torch.uint8, shape), "state2": (torch.uint8, shape)}
            assert layout == {**states, **blocks, **maps}
        else:
            assert layout == {"state1": (torch.float32, shape), "state2": (torch.float32, shape)}
    if cls is Adam8bit:
        maps = [optimizer.state[p] for p in optimizer.param_groups[0]["params"][:2]]
        assert maps[0]["qmap1"] is maps[1]["qmap1"]
        assert torch.equal(maps[0]["qmap1"].cpu(), create_dynamic_map(signed=True))
        assert torch.equal(maps[0]["qmap2"].cpu(), create_dynamic_map(signed=False))


@every_maker
def test_what_is_loaded_is_a_copy(cls, device):
    source = cls(parameters(device), min_8bit_size=64)
    train(source, 1)
    saved = source.state_dict()
    before = copy.deepcopy(saved)
    optimizer = cls(parameters(device), min_8bit_size=64)
    optimizer.load_state_dict(saved)
    train(optimizer, 2)
    optimizer.param_groups[0]["lr"] = 5.0
    assert_same(saved, before)
    tensors = {
        t.data_ptr() for entry in flat(saved)["state"].values() for t in list(entry.values())[1:]
    }
    for entry in flat(optimizer.state_dict())["state"].values():
        assert not tensors & {t.data_ptr() for t in list(entry.values())[1:]}


def test_settings_of_groups_are_loaded_and_others_kept():
    source = Adam(parameters(), lr=0.5, betas=[0.7, 0.8])
    source.param_groups[0]["initial_lr"] = 0.9
    optimizer = Adam([{"params": parameters(), "optim_bits": 8}])
    saved = source.state_dict()
    del saved["param_groups"][0]["eps"]
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    expected = {"lr": 0.5, "betas": [0.7, 0.8], "initial_lr": 0.9, "optim_bits": 8, "eps": 1e-8}
    assert expected.items() <= group.items()


def test_states_of_other_widths_are_taken_as_they_are(device):
    source = Adam32bit(parameters(device))
    train(source, 1)
    optimizer = Adam8bit(parameters(device), min_8bit_size=0)
    optimizer.load_state_dict(source.state_dict())
    train(optimizer, 2)
    assert all(state["state1"].dtype == torch.float32 for state in optimizer.state.values())


def test_maps_of_a_checkpoint_are_used_parameter_by_parameter(device):
    def optimizer_with_maps(numbers):
        optimizer = Adam8bit(
            [torch.nn.Parameter(torch.ones(600, device=device)) for _ in numbers], min_8bit_size=0
        )
        train(optimizer, 1, steps=1)
        saved = snapshot(optimizer)
        for position, number in enumerate(numbers):
            tensors = saved["state"][position][WRAPPER]
            if number == 1:
                tensors["qmap1"] = create_linear_map(signed=True).to(device)
        optimizer.load_state_dict(saved)
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.linspace(-1, 1, 600, device=device)
        for state in optimizer.state.values():
            state["state1"].fill_(7)
        optimizer.step()
        return [p.detach() for p in optimizer.param_groups[0]["params"]], optimizer

    mixed, optimizer = optimizer_with_maps([0, 1, 0, 1])
    plain, _ = optimizer_with_maps([0, 0, 0, 0])
    linear, _ = optimizer_with_maps([1, 1, 1, 1])
    assert torch.equal(mixed[0], plain[0])
    assert torch.equal(mixed[2], plain[2])
    assert torch.equal(mixed[1], linear[1])
    assert torch.equal(mixed[3], linear[3])
    assert not torch.equal(plain[1], linear[1])
    assert len({id(state["qmap1"]) for state in optimizer.state.values()}) == 2
    assert len({id(state["qmap2"]) for state in optimizer.state.values()}) == 1


@every_maker
def test_states_can_stay_where_they_are_until_the_next_step(cls):
    def optimizer():
        return cls([torch.nn.Parameter(torch.ones(8, device="meta"))], min_8bit_size=0)

    source = cls([torch.nn.Parameter(torch.ones(8))], min_8bit_size=0)
    train(source, 1)
    moved, staying = optimizer(), optimizer()
    moved.load_state_dict(source.state_dict())
    staying.load_state_dict(source.state_dict(), move_to_device=False)
    devices = [next(iter(o.state.values()))["state1"].device.type for o in (moved, staying)]
    assert devices == ["meta", "cpu"]
    staying.step()
    assert next(iter(staying.state.values()))["state1"].device.type == "meta"


def test_hooks():
    seen = []
    source = Adam(parameters(), lr=0.5)
    source.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 1})
    saved = source.state_dict()
    assert saved["extra"] == 1
    optimizer = Adam(parameters())

    def half(_, state_dict):
        groups = [{**group, "lr": group["lr"] / 2} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(half)
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("post"))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert saved["param_groups"][0]["lr"] == 0.5
    assert seen == ["pre", "post"]


def test_entries_of_others_are_kept_and_copied():
    source = Adam32bit(parameters())
    train(source, 1)
    saved = snapshot(source)
    saved["state"][0]["note"] = {"text": ["kept"]}
    saved["state"][1]["step"] = torch.tensor(7.0)
    optimizer = Adam32bit(parameters())
    optimizer.load_state_dict(saved)
    train(optimizer, 2, steps=1)
    entry = optimizer.state_dict()["state"][0]
    assert entry["note"] == {"text": ["kept"]}
    assert entry["note"] is not saved["state"][0]["note"]
    assert optimizer.state_dict()["state"][1]["step"] == 8


def entry(saved, number=0):
    return saved["state"][number]


def tensors(saved, number=0):
    return saved["state"][number][WRAPPER]


def put(get, key, value):
    def edit(saved):
        get(saved)[key] = value(get(saved)[key]) if callable(value) else value

    return edit


def drop(get, key):
    return lambda saved: get(saved).pop(key)


def group(saved):
    return saved["param_groups"][0]


STATE0 = r"^state_dict\['state'\]\[0\]"
MALFORMED = {
    "no groups": (lambda s: s.pop("param_groups"), r"\['param_groups'\]: .*a list, got NoneType"),
    "more groups": (
        lambda s: s["param_groups"].append(dict(group(s))),
        r"\['param_groups'\]: expected 1 groups.*got 2",
    ),
    "group is no dict": (
        lambda s: s["param_groups"].__setitem__(0, [1]),
        r"\['param_groups'\]\[0\]: ",
    ),
    "group without params": (drop(group, "params"), r"\['param_groups'\]\[0\]: .*'params'"),
    "fewer parameters": (
        put(group, "params", lambda p: p[:-1]),
        r"\['param_groups'\]\[0\]\['params'\]: expected 4 .*got 3",
    ),
    "rate": (put(group, "lr", -1.0), r"\['param_groups'\]\[0\]\.lr: "),
    "betas": (put(group, "betas", (2.0, 0.9)), r"\['param_groups'\]\[0\]\.betas: "),
    "amsgrad": (put(group, "amsgrad", True), r"\['param_groups'\]\[0\]\.amsgrad: "),
    "no state": (lambda s: s.pop("state"), r"\['state'\]: expected a dict"),
    "unknown parameter": (lambda s: s["state"].update({9: entry(s)}), r"\['state'\]: .*got 9"),
    "entry is no dict": (lambda s: s["state"].update({0: [1]}), f"{STATE0}: expected a dict"),
    "wrapper is no dict": (put(entry, WRAPPER, 3), rf"{STATE0}\['{WRAPPER}'\]: expected a dict"),
    "no step": (drop(entry, "step"), rf"{STATE0}\['step'\]: .*got None"),
    "negative step": (put(entry, "step", -1), rf"{STATE0}\['step'\]: .*got -1"),
    "broken step": (put(entry, "step", 1.5), rf"{STATE0}\['step'\]: .*got 1.5"),
    "infinite step": (put(entry, "step", float("inf")), rf"{STATE0}\['step'\]: .*got inf"),
    "step of many": (put(entry, "step", torch.ones(2)), rf"{STATE0}\['step'\]: "),
    "step is a bool": (put(entry, "step", True), rf"{STATE0}\['step'\]: "),
    "other optimizer": (
        lambda s: s["state"].update({0: {"step": 1, "exp_avg": torch.ones(2)}}),
        rf"{STATE0}\['state1'\]: .*got nothing",
    ),
    "leftover": (
        lambda s: entry(s, 2).update(absmax1=torch.ones(1)),
        r"\[2\]\['absmax1'\]: expected nothing",
    ),
    "map in disorder": (
        put(tensors, "qmap2", lambda t: t.flip(0)),
        rf"{STATE0}\['qmap2'\]: .*ascending",
    ),
    "map with NaN": (
        put(tensors, "qmap1", lambda t: t.clone().fill_(float("nan"))),
        rf"{STATE0}\['qmap1'\]: .*ascending",
    ),
    "state of a 16-bit type": (
        put(lambda s: tensors(s, 2), "state1", lambda t: t.half()),
        r"\[2\]\['state1'\]: expected a tensor of torch.float32.*got torch.float16",
    ),
    "states of two types": (
        put(tensors, "state2", lambda t: t.float()),
        rf"{STATE0}\['state2'\]: expected a tensor of torch.uint8",
    ),
    **{
        f"no {key}": (drop(tensors, key), rf"{STATE0}\['{key}'\]: .*got nothing")
        for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")
    },
    **{
        f"{key} is too short": (
            put(tensors, key, lambda t: t.flatten()[:-1]),
            rf"{STATE0}\['{key}'\]: expected .*shape",
        )
        for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")
    },
    **{
        f"{key} is too long": (
            put(tensors, key, lambda t: torch.cat([t, t])),
            rf"{STATE0}\['{key}'\]: expected .*shape",
        )
        for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")
    },
    **{
        f"{key} of another type": (
            put(tensors, key, lambda t: t.to(torch.float64)),
            rf"{STATE0}\['{key}'\]: expected a tensor of",
        )
        for key in ("state2", "absmax1", "absmax2", "qmap1", "qmap2")
    },
    "state is a list": (put(tensors, "absmax1", [1.0]), rf"{STATE0}\['absmax1'\]: .*got list"),
}


@pytest.mark.parametrize(("edit", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_states_are_refused_and_change_nothing(edit, message):
    source = Adam8bit(parameters(), min_8bit_size=64)
    train(source, 1)
    saved = snapshot(source)
    edit(saved)
    optimizer = Adam8bit(parameters(), lr=0.7, min_8bit_size=64)
    train(optimizer, 2)
    groups, before = optimizer.param_groups, snapshot(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups is groups
    assert_same(optimizer.state_dict(), before)


@every_maker
def test_truncated_states_are_refused_and_change_nothing(cls):
    source = cls(parameters(), min_8bit_size=64)
    train(source, 1)
    optimizer = cls(parameters(), min_8bit_size=64)
    train(optimizer, 2)
    before = snapshot(optimizer)
    for key in tensors(source.state_dict()):
        saved = snapshot(source)
        tensors(saved)[key] = tensors(saved)[key].flatten()[:-1]
        with pytest.raises(ValueError, match=rf"{STATE0}\['{key}'\]: expected .*shape"):
            optimizer.load_state_dict(saved)
        if key != "unorm_vec":
            del tensors(saved)[key]
            with pytest.raises(ValueError, match=rf"{STATE0}\['{key}'\]: .*got nothing"):
                optimizer.load_state_dict(saved)
        assert_same(optimizer.state_dict(), before)


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        (Adam8bit, Lion8bit, r"\['state2'\]: expected nothing, .* keeps 1 "),
        (Adam32bit, Lion, r"\['state2'\]: expected nothing, .* keeps 1 "),
        (Lion8bit, Adam8bit, r"\['state2'\]: .*got nothing"),
        (Adam, AdEMAMix, r"betas: expected 3 numbers"),
        (AdEMAMix8bit, Adam8bit, r"betas: expected 2 numbers"),
    ],
)
def test_states_of_other_families_are_refused(saved, loading, message):
    source, optimizer = (cls(parameters(), min_8bit_size=64) for cls in (saved, loading))
    train(source, 1)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(source.state_dict())


def test_both_averages_of_ademamix_must_be_there():
    source = AdEMAMix8bit(parameters(), min_8bit_size=64)
    train(source, 1)
    saved = snapshot(source)
    for key in ("state1", "absmax1"):
        broken = copy.deepcopy(saved)
        tensors(broken)[key] = tensors(broken)[key][0]
        with pytest.raises(ValueError, match=rf"{STATE0}\['{key}'\]: .*\(2, .*shape"):
            AdEMAMix8bit(parameters(), min_8bit_size=64).load_state_dict(broken)


def test_errors_name_the_parameter():
    model = torch.nn.Linear(4, 4)
    optimizer = Adam(model.named_parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = snapshot(optimizer)
    saved["state"][1][WRAPPER]["state2"] = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"\['state'\]\[1\] \(bias\)\['state2'\]: .*\(4,\).*\(3,\)"
    ):
        optimizer.load_state_dict(saved)


def test_states_of_torch_are_refused():
    reference = torch.optim.AdamW(parameters())
    train(reference, 1)
    with pytest.raises(ValueError, match=r"\['state1'\]: .*got nothing"):
        Adam(parameters()).load_state_dict(reference.state_dict())
