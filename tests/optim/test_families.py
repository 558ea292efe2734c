"""The trajectories of every family: against torch, the rules in float64, and in training."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from tests.ops import rules

from bnbx import optim

from .families import (
    EVERY_NAME,
    FAMILIES,
    PAGED,
    RULE_OF,
    bits_of,
    constants,
    family_of,
    make,
    parameters,
    set_gradients,
    states_of,
)

SHAPES = [(), (1,), (255,), (256,), (257,), (3, 5, 7), (64, 65), (16, 300), (0,), (4, 0)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TORCH = [
    ("Adam", torch.optim.AdamW, {"weight_decay": 0.0}, {}),
    ("AdamW", torch.optim.AdamW, {}, {}),
    ("AdamW", torch.optim.AdamW, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {}),
    ("AdamW", torch.optim.AdamW, {"maximize": True}, {}),
    ("SGD", torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}, {}),
    ("SGD", torch.optim.SGD, {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.1}, {}),
    ("SGD", torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.3}, {}),
    ("SGD", torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}, {}),
    ("SGD", torch.optim.SGD, {"lr": 0.01, "momentum": 0.5, "maximize": True}, {}),
    ("LARS", torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}, {"max_unorm": 0.0}),
    ("RMSprop", torch.optim.RMSprop, {}, {}),
    ("RMSprop", torch.optim.RMSprop, {"alpha": 0.5, "eps": 1e-2, "weight_decay": 0.1}, {}),
    ("Adagrad", torch.optim.Adagrad, {}, {}),
    ("Adagrad", torch.optim.Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3}, {}),
    ("LAMB", torch.optim.AdamW, {"weight_decay": 0.1}, {"max_unorm": 0.0}),
]


@pytest.mark.parametrize("bits", ["", "32bit"])
@pytest.mark.parametrize(("name", "reference", "settings", "own"), TORCH)
def test_32bit_follows_torch(name, bits, reference, settings, own, device):
    ours = parameters(SHAPES, device=device)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = make(name + bits, ours, **settings, **own), reference(theirs, **settings)
    for _ in range(20):
        set_gradients(ours)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=4e-6, atol=4e-6)


def expected_of(optimizer, p, step):
    """Return what the rule in float64 makes of a parameter and its states."""
    rule = RULE_OF.get(family_of(type(optimizer).__name__), "adam")
    h = constants(optimizer)
    state = optimizer.state[p]
    if not state:
        stacked = [(2, *p.shape) if rule == "ademamix" else p.shape, p.shape]
        states = [
            torch.zeros(s, device=p.device) for s in stacked[: 1 + (rule in {"adam", "ademamix"})]
        ]
    else:
        states = states_of(state, p.shape)
    return rules.update(rule, h, step, p.grad, p.detach(), *states)


def oracle_nearest(values, qmap):
    """Each value replaced by the nearest that its block of 256, of 4-bit codes 128, can hold."""
    blocksize = 128 if len(qmap) == 16 else 256
    blocks = [b / b.abs().max().clamp(min=1e-38) for b in values.flatten().split(blocksize)]
    scales = [b.abs().max() for b in values.flatten().split(blocksize)]
    nearest = [qmap[(b[:, None] - qmap).abs().argmin(1)] for b in blocks]
    return torch.cat([n * s for n, s in zip(nearest, scales, strict=True)]).view(values.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [f"{name}32bit" for name in FAMILIES])
def test_32bit_follows_the_rule(name, dtype, device):
    params = parameters([(300,), (7, 90)], dtype, device)
    optimizer = make(name, params, lr=1e-2, weight_decay=0.1)
    for step in range(1, 6):
        set_gradients(params)
        expected = [expected_of(optimizer, p, step) for p in params]
        optimizer.step()
        for p, (moved, states, unorm) in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), moved.to(dtype))
            for kept, exact in zip(states_of(optimizer.state[p], p.shape), states, strict=True):
                torch.testing.assert_close(kept, exact.float())
            if "unorm_vec" in optimizer.state[p]:
                torch.testing.assert_close(optimizer.state[p]["unorm_vec"], unorm.float().view(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*(f"{name}8bit" for name in FAMILIES), "Adam4bit", "AdamW4bit"])
def test_codes_follow_the_rule(name, dtype, device):
    params = parameters([(1,), (255,), (257,), (3, 5, 7), (600,)], dtype, device)
    optimizer = make(name, params, lr=1e-2, weight_decay=0.1, min_8bit_size=0)
    for step in range(1, 5):
        set_gradients(params)
        expected = [expected_of(optimizer, p, step) for p in params]
        optimizer.step()
        for p, (moved, states, _) in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), moved.to(dtype))
            state = optimizer.state[p]
            kept_states = states_of(state, p.shape)
            for number, (kept, exact) in enumerate(zip(kept_states, states, strict=True), 1):
                qmap = state[f"qmap{number}"].double()
                parts = zip(kept, exact, strict=True) if exact.dim() > p.dim() else [(kept, exact)]
                for have, want in parts:
                    best = oracle_nearest(want, qmap)
                    slack = 1e-6 * want.abs().max()  # two entries may be equally near
                    assert ((have - want).abs() <= (best - want).abs() + slack).all()


@pytest.mark.parametrize("name", EVERY_NAME)
def test_every_shape_and_dtype_is_updated(name, device):
    params = [p for dtype in DTYPES for p in parameters(SHAPES, dtype, device)]
    before = [p.detach().clone() for p in params]
    optimizer = make(name, params, lr=0.5, min_8bit_size=1)
    set_gradients(params)
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        assert p.dtype == old.dtype
        assert p.shape == old.shape
        assert p.isfinite().all()
        assert p.numel() == 0 or (p != old).any()


@pytest.mark.parametrize(
    "name", [f"{name}{bits}" for name in FAMILIES for bits in ("8bit", "32bit")]
)
def test_skip_zeros_leaves_entries_without_gradient_alone(name, device):
    p = torch.nn.Parameter(torch.randn(512, device=device))
    optimizer = make(name, [p], lr=0.1, weight_decay=0.1, min_8bit_size=0, skip_zeros=True)
    before = p.detach().clone()
    p.grad = torch.randn(512, device=device)
    p.grad[::2] = 0.0
    optimizer.step()
    assert torch.equal(p[::2], before[::2])
    assert (p[1::2] != before[1::2]).all()


@pytest.mark.parametrize(
    "name", [f"{name}{bits}" for name in FAMILIES for bits in ("8bit", "32bit")]
)
def test_max_unorm_bounds_the_step(name, device):
    p = torch.nn.Parameter(torch.randn(700, device=device))
    optimizer = make(name, [p], lr=0.5, weight_decay=0.0, min_8bit_size=0, max_unorm=0.01)
    for _ in range(3):
        p.grad = torch.randn(700, device=device) * 10
        before = p.detach().clone()
        optimizer.step()
        bound = 0.5 * 0.01 * before.norm()
        torch.testing.assert_close((p - before).norm(), bound, rtol=1e-4, atol=0.0)
        assert optimizer.state[p]["unorm_vec"] > 0.01 * before.norm()


@pytest.mark.parametrize("name", ["AdEMAMix8bit", "AdEMAMix32bit"])
def test_schedules_of_ademamix(name, device):
    """Pagliardini et al. 2024, section 3: alpha grows linearly, as does the half-life of beta3."""
    p = torch.nn.Parameter(torch.randn(300, device=device))
    optimizer = make(name, [p], alpha=4.0, t_alpha=4, t_beta3=8, min_8bit_size=0)
    half_lives = []
    for step in range(1, 12):
        p.grad = torch.randn(300, device=device)
        beta3 = min(
            0.9999, 0.9 ** (1 / (1 - step / 8 + step / 8 * math.log(0.9) / math.log(0.9999)))
        )
        if step >= 8:
            beta3 = 0.9999
        half_lives.append(math.log(0.5) / math.log(beta3))
        h = {**constants(optimizer), "beta3": beta3, "alpha": min(step / 4, 1.0) * 4.0}
        state = optimizer.state[p]
        states = states_of(state, p.shape) if state else [torch.zeros(2, 300), torch.zeros(300)]
        expected, *_ = rules.update(
            "ademamix", h, step, p.grad, p.detach(), *(s.to(device) for s in states)
        )
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected.float())
    steps = [b - a for a, b in itertools.pairwise(half_lives)][:7]
    assert max(steps) < 1.001 * min(steps)


def test_schedules_need_rates_to_start_from():
    p = parameters([(4,)])[0]
    p.grad = torch.ones(4)
    optimizer = optim.AdEMAMix([p], betas=(0.0, 0.9, 0.99), t_beta3=5)
    with pytest.raises(ValueError, match=r"^betas: .*t_beta3"):
        optimizer.step()


@pytest.mark.parametrize("name", EVERY_NAME)
def test_names_are_documented_classes_of_the_package(name):
    cls = getattr(optim, name)
    assert name in optim.__all__
    assert cls.__doc__
    assert cls.__qualname__ == name
    assert issubclass(cls, getattr(optim, family_of(name)))
    assert pickle.loads(pickle.dumps(cls)) is cls
    optimizer = make(name, parameters([(1,)]))
    assert optimizer.args.optim_bits == bits_of(name)
    assert optimizer.args.is_paged == name.startswith("Paged")


@pytest.mark.parametrize("name", [*PAGED, *(f"{name}8bit" for name in PAGED)])
def test_paged_states_on_a_cpu_are_those_of_the_plain_name(name):
    first, second = parameters([(300,)]), parameters([(300,)])
    second[0].data.copy_(first[0])
    optimizers = (
        make(f"Paged{name}", first, min_8bit_size=0),
        make(name, second, min_8bit_size=0, is_paged=False),
    )
    for _ in range(3):
        set_gradients(first)
        second[0].grad = first[0].grad
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(first[0], second[0])
    assert make(name, first, is_paged=True).args.is_paged


@pytest.mark.parametrize("name", FAMILIES)
def test_8bit_training_follows_32bit_training(name, device):
    x = torch.randn(512, 32, device=device)
    target = torch.sin(x @ torch.randn(32, 4, device=device))
    rates = {"SGD": 0.1, "LARS": 1.0, "Lion": 1e-3, "Adagrad": 3e-2, "RMSprop": 3e-3}

    def losses(bits):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 4)
        ).to(device)
        rate = rates.get(name, 1e-2)
        optimizer = make(f"{name}{bits}", model.parameters(), lr=rate, min_8bit_size=256)
        values = []
        for _ in range(80):
            loss = torch.nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    quantized, full = losses("8bit"), losses("32bit")
    assert full[-1] < 0.7 * full[0]
    tail = [sum(values[-10:]) for values in (quantized, full)]
    assert math.isclose(*tail, rel_tol=0.1)


@pytest.mark.parametrize("name", [f"{name}8bit" for name in FAMILIES])
def test_thousands_of_steps_do_not_drift(name, device):
    """The least squares of a diagonal quadratic, whose minimum is known."""
    target = torch.randn(512, device=device)
    p = torch.nn.Parameter(torch.randn(512, device=device))
    rates = {"SGD": 0.05, "LARS": 0.5, "Adagrad": 0.5, "AdEMAMix": 1e-2}
    optimizer = make(
        name, [p], lr=rates.get(name.removesuffix("8bit"), 1e-2), weight_decay=0.0, min_8bit_size=0
    )
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=3000)
    for _ in range(3000):
        p.grad = p.detach() - target + 0.1 * torch.randn(512, device=device)
        optimizer.step()
        scheduler.step()
    assert (p - target).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["Adam", "AdamW", "LAMB", "SGD", "LARS", "RMSprop", "Lion"])
def test_4bit_training_follows_32bit_training(name, device):
    """It goes the same way, but slower where the first moment is all that there is."""
    x = torch.randn(512, 32, device=device)
    target = torch.sin(x @ torch.randn(32, 4, device=device))
    rates = {"SGD": 0.1, "LARS": 1.0, "Lion": 1e-3, "RMSprop": 3e-3}

    def losses(bits):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 4)
        ).to(device)
        settings = {"lr": rates.get(name, 1e-2), "optim_bits": bits, "min_8bit_size": 256}
        optimizer = make(name, model.parameters(), **settings)
        values = []
        for _ in range(80):
            loss = torch.nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    quantized, full = losses(4), losses(32)
    gained = full[0] - full[-1]
    assert gained > 0.3 * full[0]
    share = 0.95 if name in {"Adam", "AdamW", "RMSprop"} else 0.7
    assert share * gained < quantized[0] - quantized[-1] < 1.05 * gained


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("limit", [0.0, 0.02])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_in_plain_torch_is_the_same(momentum, limit, nesterov, device):
    settings = {"lr": 0.1, "momentum": momentum, "dampening": 0.1, "weight_decay": 0.1}
    settings |= {"nesterov": nesterov, "max_unorm": limit}
    ours, theirs = (
        parameters([(300,), (0,)], device=device),
        parameters([(300,), (0,)], device=device),
    )
    for p, q in zip(ours, theirs, strict=True):
        q.data.copy_(p)
    optimizers = optim.LARS(ours, **settings), optim.PytorchLARS(theirs, **settings)
    for _ in range(5):
        set_gradients(ours)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_lars_in_plain_torch_takes_other_dtypes_closures_and_no_gradients():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    frozen = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.PytorchLARS([p, frozen], lr=0.1, momentum=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)
    assert torch.equal(frozen, torch.ones(3))
    before = p.detach().clone()
    frozen.grad = torch.ones(3).to_sparse()
    with pytest.raises(ValueError, match=r"^param_groups\[0\]\['params'\]\[1\]\.grad: .*dense"):
        optimizer.step()
    assert torch.equal(p, before)
    with pytest.raises(ValueError, match="^momentum: expected"):
        optim.PytorchLARS([p], momentum=1.5)
    with pytest.raises(ValueError, match=r"^param_groups\[1\]\.max_unorm: expected"):
        optimizer.add_param_group({"params": [torch.ones(1)], "max_unorm": -1})
