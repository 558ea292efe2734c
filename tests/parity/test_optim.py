"""Every family against bitsandbytes: signatures, checkpoints both ways and trajectories.

Where bitsandbytes ignores an argument on a CPU (the ``max_unorm`` of 8-bit LAMB and LARS, and
dampening) or means something else by it (the norm of LAMB's update is taken before the correction
of its averages), the tests leave that argument out.
"""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from bnbx import optim

bnb = pytest.importorskip("bitsandbytes")

MODULES = [optim, bnb.optim]
FAMILIES = ("Adam", "AdamW", "AdEMAMix", "Lion", "SGD", "RMSprop", "Adagrad", "LAMB", "LARS")
#: bitsandbytes has no 4-bit states.
CLASSES = {n for n in optim.__all__ if isinstance(getattr(optim, n), type) and "4bit" not in n}
NAMES = sorted(CLASSES - {"GlobalOptimManager", "PytorchLARS"})
PLAIN = [f"{name}{bits}" for name in FAMILIES for bits in ("", "8bit", "32bit")]
SHAPES = [(40, 30), (4096,), (5,)]
OWN = {
    "Adam": {"betas": (0.8, 0.99)},
    "AdamW": {"betas": (0.8, 0.99)},
    "AdEMAMix": {"betas": (0.8, 0.99, 0.999), "t_alpha": 8, "t_beta3": 8},
    "Lion": {"betas": (0.8, 0.9), "weight_decay": 0.1},
    "SGD": {"momentum": 0.8, "weight_decay": 0.1},
    "RMSprop": {"alpha": 0.9, "weight_decay": 0.1},
    "Adagrad": {"weight_decay": 0.1},
    "LAMB": {"betas": (0.8, 0.99)},
    "LARS": {"momentum": 0.8, "weight_decay": 0.1},
}


def family_of(name):
    return name.removeprefix("Paged").removesuffix("8bit").removesuffix("32bit")


def class_of(module, name):
    if module is bnb.optim:
        # The numbered name makes a state of half the size that its update needs.
        name = name.replace("AdEMAMix32bit", "AdEMAMix")
    return getattr(module, name)


def make(module, name, params, **settings):
    settings = {"lr": 1e-2, "min_8bit_size": 1024, **OWN[family_of(name)], **settings}
    if module is bnb.optim and name == "LAMB8bit":
        settings.pop("max_unorm", None)  # any value but the default is refused, and that ignored
    return class_of(module, name)(params, **settings)


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


def trained(name, dtype=torch.float32, **settings):
    """Return what our optimizer and theirs make of the same parameters."""
    return [train(make(module, name, parameters(dtype), **settings), 2, 12) for module in MODULES]


def flat(state_dict):
    return {
        number: {**entry, **entry["__bnb_optimizer_quant_state__"]}
        for number, entry in state_dict["state"].items()
    }


def mean_distance(first, second):
    return sum((p.float() - q.float()).abs().mean() for p, q in zip(first, second, strict=True))


def unlimited(name):
    """Return what makes LAMB comparable."""
    return {"max_unorm": 0.0} if family_of(name) == "LAMB" else {}


def test_names():
    theirs = {n for n in dir(bnb.optim) if isinstance(getattr(bnb.optim, n), type)}
    assert theirs == CLASSES


@pytest.mark.parametrize("name", [*NAMES, "PytorchLARS"])
def test_signatures_begin_as_those_of_bitsandbytes(name):
    ours, theirs = (list(inspect.signature(getattr(m, name)).parameters.values()) for m in MODULES)
    for mine, original in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind) == (original.name, original.kind)
        if (name, mine.name) != ("Adagrad8bit", "optim_bits"):  # 8 there, and here taken too
            assert mine.default == original.default
    assert len(ours) >= len(theirs)


@pytest.mark.parametrize("name", [n for n in PLAIN if "8bit" not in n])
def test_32bit_trajectories_are_equal(name):
    ours, theirs = trained(name, **unlimited(name))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [f"{name}32bit" for name in FAMILIES])
def test_16bit_parameters_are_equal(name, dtype):
    ours, theirs = trained(name, dtype, **unlimited(name))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [f"{name}8bit" for name in FAMILIES])
def test_8bit_trajectories_are_nearer_than_the_quantization_error(name, dtype):
    own = {"max_unorm": 0.0} if name in {"LAMB8bit", "LARS8bit"} else {}
    ours, theirs = trained(name, dtype, min_8bit_size=0, **own)
    exact, _ = trained(name.replace("8", "32"), dtype, **own)
    if name not in {"RMSprop8bit", "Adagrad8bit"}:  # our map has no codes for negative squares
        assert mean_distance(ours, theirs) < 0.5 * mean_distance(exact, theirs)
    slack = 1.1 if dtype == torch.float32 else 1.3  # 16-bit parameters round more than the states
    assert mean_distance(ours, exact) < slack * mean_distance(exact, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("source", "target"), [MODULES, MODULES[::-1]])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_checkpoints_load_both_ways(name, source, target):
    first = make(source, name, parameters())
    train(first, 2, 4)
    saved = copy.deepcopy(first.state_dict())
    copies = copy.deepcopy(first.param_groups[0]["params"])
    own = {"momentum": 0.1} if "momentum" in OWN[family_of(name)] else {}
    second = class_of(target, name)(copies, lr=0.5, min_8bit_size=1024, **own)
    second.load_state_dict(first.state_dict())
    for key, value in first.param_groups[0].items():
        if key not in {"params", *(target is optim) * ("alpha", "t_alpha", "t_beta3")}:
            assert second.param_groups[0][key] == value
    again = flat(second.state_dict())
    for number, entry in flat(saved).items():
        del entry["__bnb_optimizer_quant_state__"]
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(again[number][key]), torch.as_tensor(value))
    if family_of(name) == "LAMB" or name == "LARS8bit":
        return  # the norms differ, see above; that the state is taken is what counts
    distance = mean_distance(train(second, 3, 4), train(first, 3, 4))
    # Where a value is half-way between two codes either may be taken, and Lion takes its sign.
    bound = {"Lion": 0.1, "AdEMAMix": 0.1}.get(family_of(name), 0.02)
    assert distance < (bound * 1e-2 if "8bit" in name else 1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_states_have_the_same_layout(name):
    layouts = []
    for module in MODULES:
        optimizer = make(module, name, parameters())
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


def test_lars_in_plain_torch():
    ours, theirs = (
        train(m.PytorchLARS(parameters(), lr=0.1, momentum=0.8, weight_decay=0.1), 2, 12)
        for m in MODULES
    )
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)
    optimizers = [m.PytorchLARS(parameters(), lr=0.1, momentum=0.8) for m in MODULES]
    train(optimizers[1], 2, 3)
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    assert "momentum_buffer" in next(iter(optimizers[0].state.values()))


@pytest.mark.parametrize("name", ["Adam8bit", "AdamW8bit"])
def test_codes_agree_or_ours_are_nearer(name):
    states = []
    for module in MODULES:
        optimizer = make(module, name, parameters())
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
