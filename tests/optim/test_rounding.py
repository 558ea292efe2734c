"""Options of parameters of bfloat16: stochastic rounding and Kahan summation."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from bnbx.optim import Adam, AdamW, AdamW4bit, AdamW8bit, AdamW32bit, GlobalOptimManager, Lion
from bnbx.optim.flat import flatten_state_dict, unflatten_state_dict

from .families import FAMILIES, make

WRAPPER = "__bnb_optimizer_quant_state__"
WIDTHS = [AdamW4bit, AdamW8bit, AdamW32bit]
OPTIONS = ["bf16_stochastic_round", "kahan_sum"]
every_option = pytest.mark.parametrize("option", OPTIONS)
every_width = pytest.mark.parametrize("cls", WIDTHS)


def parameters(device="cpu"):
    generator = torch.Generator().manual_seed(1)
    dtypes = {(40, 30): torch.bfloat16, (700,): torch.float32, (9,): torch.bfloat16}
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
        for shape, dtype in dtypes.items()
    ]


def train(optimizer, seed, steps=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape, generator=generator).to(p)
        optimizer.step()


def values(optimizer):
    return [p.detach().clone() for p in optimizer.param_groups[0]["params"]]


def assert_equal(first, second):
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


@every_option
@every_width
def test_only_parameters_of_bfloat16_are_concerned(cls, option, device):
    plain = cls(parameters(device), lr=0.1, min_8bit_size=64)
    with_it = cls(parameters(device), lr=0.1, min_8bit_size=64, **{option: True})
    for optimizer in (plain, with_it):
        train(optimizer, 1)
    first, second = values(plain), values(with_it)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    key = {"kahan_sum": "compensation", "bf16_stochastic_round": "seed"}[option]
    states = list(with_it.state.values())
    assert [key in state for state in states] == [True, False, True]
    if option == "kahan_sum":
        rest = states[0]["compensation"]
        assert (rest.dtype, rest.shape) == (torch.bfloat16, (40, 30))
        assert rest.any()


@every_width
def test_the_seed_of_torch_decides(cls):
    def trained(seed):
        torch.manual_seed(seed)
        optimizer = cls(parameters(), min_8bit_size=64, bf16_stochastic_round=True)
        train(optimizer, 1)
        return values(optimizer)

    first, second, third = trained(1), trained(1), trained(2)
    assert_equal(first, second)
    assert not torch.equal(first[0], third[0])


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def flat(state_dict):
    return unflatten_state_dict(*flatten_state_dict(state_dict))


@every_option
@every_width
@pytest.mark.parametrize("way", [saved_and_loaded, flat])
def test_going_on_from_a_checkpoint_is_exact(cls, option, way, device):
    settings = {"lr": 0.1, "min_8bit_size": 64, option: True}
    torch.manual_seed(5)
    straight = cls(parameters(device), **settings)
    train(straight, 1)
    torch.manual_seed(5)
    first = cls(parameters(device), **settings)
    train(first, 1)
    torch.manual_seed(6)
    second = cls([torch.nn.Parameter(p) for p in values(first)], **settings)
    second.load_state_dict(way(first.state_dict()))
    for optimizer in (straight, second):
        train(optimizer, 2)
    assert_equal(values(straight), values(second))


@every_option
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_them(name, option, device):
    """At a rate whose steps plain bfloat16 would mostly lose, the end is nearer to that of float32.

    Nearer by ten times with a compensation. Rounding at random is right on average only.
    """
    start = torch.randn(4096, generator=torch.Generator().manual_seed(1)).bfloat16()
    rates = {"SGD": 1e-4, "LARS": 1e-2, "Adagrad": 1e-3}

    def trained(dtype, **options):
        p = torch.nn.Parameter(start.to(device, dtype, copy=True))
        optimizer = make(name, [p], lr=rates.get(name, 2e-5), weight_decay=0.0, **options)
        generator = torch.Generator().manual_seed(2)
        for _ in range(100):
            p.grad = (1.0 + torch.randn(4096, generator=generator)).bfloat16().to(p)
            optimizer.step()
        rest = optimizer.state[p].get("compensation", torch.zeros(()))
        return p.detach().double() + rest.double()

    exact, plain = trained(torch.float32), trained(torch.bfloat16)
    better = trained(torch.bfloat16, **{option: True})
    if option == "kahan_sum":
        assert (better - exact).abs().mean() < 0.1 * (plain - exact).abs().mean()
    else:
        assert (better - exact).mean().abs() < 0.2 * (plain - exact).mean().abs()


@every_option
def test_skipped_elements_stay(option, device):
    p = torch.nn.Parameter(torch.randn(4096, device=device).bfloat16())
    optimizer = AdamW(
        [p], lr=1e-4, weight_decay=0.1, min_8bit_size=0, skip_zeros=True, **{option: True}
    )
    for _ in range(5):
        p.grad = torch.randn_like(p)
        optimizer.step()
    before = p.detach().clone()
    p.grad = torch.randn_like(p)
    p.grad[::2] = 0.0
    optimizer.step()
    assert torch.equal(p[::2], before[::2])


def test_both_at_once_are_refused():
    both = dict.fromkeys(OPTIONS, True)
    with pytest.raises(ValueError, match="^kahan_sum: expected False where bf16_stochastic_round"):
        AdamW(parameters(), **both)
    optimizer = AdamW([{"params": parameters(), "kahan_sum": True}], bf16_stochastic_round=True)
    before = values(optimizer)
    with pytest.raises(ValueError, match=r"^kahan_sum of param_groups\[0\]\['params'\]\[0\]: exp"):
        train(optimizer, 1, steps=1)
    assert_equal(values(optimizer), before)


@every_option
def test_flags_are_flags(option):
    with pytest.raises(ValueError, match=f"^{option}: expected True or False"):
        Adam(parameters(), **{option: 1})


@every_option
def test_groups_and_overrides_have_their_own(option):
    params = parameters()
    optimizer = Lion([{"params": params[:1], option: True}, {"params": params[1:]}])
    GlobalOptimManager.get_instance().override_config(params[2], option, True)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [len(optimizer.state[p]) for p in params] == [3, 2, 3]


@every_option
def test_it_may_begin_later(option):
    optimizer = AdamW8bit(parameters(), min_8bit_size=64)
    train(optimizer, 1)
    optimizer.param_groups[0][option] = True
    train(optimizer, 2)
    assert len(optimizer.state[optimizer.param_groups[0]["params"][0]]) == 8


WRONG = [
    ("kahan_sum", "compensation", lambda t: t.float(), "a tensor of torch.bfloat16"),
    ("kahan_sum", "compensation", lambda t: t[:-1], "a tensor of torch.bfloat16"),
    ("kahan_sum", "compensation", lambda _: None, "a tensor of torch.bfloat16"),
    ("bf16_stochastic_round", "seed", lambda _: "x", "a whole number"),
    ("bf16_stochastic_round", "seed", lambda _: -1, "a whole number"),
    ("bf16_stochastic_round", "seed", lambda _: 2**63, "a whole number"),
]


@pytest.mark.parametrize(("option", "key", "change", "expected"), WRONG)
def test_a_malformed_entry_is_refused(option, key, change, expected):
    optimizer = AdamW8bit(parameters(), min_8bit_size=64, **{option: True})
    train(optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    entries = saved["state"][0]
    entries = entries[WRAPPER] if key in entries[WRAPPER] else entries
    entries[key] = change(entries[key])
    before = copy.deepcopy(optimizer.state_dict())
    pattern = rf"^state_dict\['state'\]\[0\]\['{key}'\]: expected {expected}"
    with pytest.raises(ValueError, match=pattern):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert torch.equal(after["state"][0][WRAPPER]["state1"], before["state"][0][WRAPPER]["state1"])
