"""Adam and AdamW against bitsandbytes: checkpoints both ways and trajectories."""

from __future__ import annotations

import copy

import pytest
import torch

from bnbx import optim

bnb = pytest.importorskip("bitsandbytes")

MODULES = [optim, bnb.optim]
NAMES = [f"Adam{w}{bits}" for w in ("", "W") for bits in ("", "8bit", "32bit")]
SHAPES = [(40, 30), (4096,), (5,)]
SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.99), "min_8bit_size": 1024}


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def train(optimizer, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    params = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def flat(state_dict):
    return {
        number: {**entry, **entry["__bnb_optimizer_quant_state__"]}
        for number, entry in state_dict["state"].items()
    }


def mean_distance(first, second):
    return sum((p.float() - q.float()).abs().mean() for p, q in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["Adam", "Adam32bit", "AdamW", "AdamW32bit"])
def test_32bit_trajectories_are_equal(name):
    ours, theirs = (
        train(getattr(module, name)(parameters(), **SETTINGS), 2, 12) for module in MODULES
    )
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["Adam32bit", "AdamW32bit"])
def test_16bit_parameters_are_equal(name, dtype):
    ours, theirs = (
        train(getattr(module, name)(parameters(dtype), **SETTINGS), 2, 12) for module in MODULES
    )
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["Adam8bit", "AdamW8bit"])
def test_8bit_trajectories_are_nearer_than_the_quantization_error(name, dtype):
    ours, theirs = (
        train(getattr(module, name)(parameters(dtype), **SETTINGS), 2, 12) for module in MODULES
    )
    exact = train(getattr(optim, name.replace("8", "32"))(parameters(dtype), **SETTINGS), 2, 12)
    assert mean_distance(ours, theirs) < 0.5 * mean_distance(exact, theirs)
    assert mean_distance(ours, exact) < 1.1 * mean_distance(exact, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("source", "target"), [MODULES, MODULES[::-1]])
def test_checkpoints_load_both_ways(name, source, target):
    first = getattr(source, name)(parameters(), **SETTINGS)
    train(first, 2, 4)
    saved = copy.deepcopy(first.state_dict())
    second = getattr(target, name)(
        copy.deepcopy(first.param_groups[0]["params"]), min_8bit_size=1024
    )
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == SETTINGS["lr"]
    assert tuple(second.param_groups[0]["betas"]) == SETTINGS["betas"]
    again = flat(second.state_dict())
    for number, entry in flat(saved).items():
        del entry["__bnb_optimizer_quant_state__"]
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(again[number][key]), torch.as_tensor(value))
    distance = mean_distance(train(second, 3, 4), train(first, 3, 4))
    assert distance < (0.02 * SETTINGS["lr"] if "8bit" in name else 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_states_have_the_same_layout(name):
    layouts = []
    for module in MODULES:
        optimizer = getattr(module, name)(parameters(), **SETTINGS)
        train(optimizer, 2, 1)
        state_dict = optimizer.state_dict()
        layouts.append(
            {
                number: {
                    key: {k: (v.dtype, v.shape) for k, v in value.items()}
                    if isinstance(value, dict)
                    else type(value)
                    for key, value in entry.items()
                }
                for number, entry in state_dict["state"].items()
            }
        )
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize("name", ["Adam8bit", "AdamW8bit"])
def test_codes_agree_or_ours_are_nearer(name):
    states = []
    for module in MODULES:
        optimizer = getattr(module, name)(parameters(), **SETTINGS)
        train(optimizer, 2, 1)
        states.append(flat(optimizer.state_dict()))
        gradients = [p.grad for p in optimizer.param_groups[0]["params"]]
    for number, g in enumerate(gradients[:2]):
        for key, exact in (("1", 0.2 * g), ("2", 0.01 * g * g)):
            ours, theirs = (
                {k: s[number][f"{k}{key}"].flatten() for k in ("state", "absmax", "qmap")}
                for s in states
            )
            assert torch.equal(ours["qmap"], theirs["qmap"])
            torch.testing.assert_close(ours["absmax"], theirs["absmax"])
            errors = [
                (s["qmap"][s["state"].int()] * s["absmax"].repeat_interleave(256)[: g.numel()])
                .sub(exact.flatten())
                .abs()
                for s in (ours, theirs)
            ]
            assert (errors[0] <= errors[1] + 1e-7 * exact.abs().max()).all()
            assert (ours["state"] == theirs["state"]).float().mean() > 0.9
