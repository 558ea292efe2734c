"""optimizer_update_32bit: the update rule of each optimizer, in place, for a list of parameters."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnbx.backends import reference

from .checks import DTYPES, close, every_isa, refuses, run, same
from .samples import arguments, update_32bit

#: Nothing, scalars, partial vectors, more than one chunk and more than one thread's share.
SHAPES = ((), (0,), (4, 0), (1,), (7,), (16,), (3, 5, 7), (255,), (257,), (20_001,))


def adam(call, i, g):
    """Return new parameter, state1, state2 in float64: Loshchilov & Hutter 2019, algorithm 2."""
    p, m, v = (call[name][i].double() for name in ("p", "state1", "state2"))
    lr, beta1, beta2, step = call["lr"], call["beta1"], call["beta2"], call["step"][i]
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    p = p * (1 - lr * call["weight_decay"]) - lr * m_hat / (v_hat.sqrt() + call["eps"])
    return p, m, v


def run_32bit(**call):
    return run("optimizer_update_32bit", **call)


def check(update, call):
    """Run the update and compare each tensor with the rule in float64."""
    before = copy.deepcopy(call)
    assert update(**call) is None
    for i, p in enumerate(before["p"]):
        g = before["g"][i].double() * before["gnorm_scale"]
        expected = adam(before, i, g)
        largest = p.double().abs() + (expected[0] - p.double()).abs()
        errors = (largest, before["state1"][i].abs() + g.abs(), expected[2])
        for name, exact, size in zip(("p", "state1", "state2"), expected, errors, strict=True):
            if before["skip_zeros"]:
                exact = torch.where(g == 0.0, before[name][i].double(), exact)  # noqa: PLW2901
            close(call[name][i], exact, 8 * torch.finfo(torch.float32).eps * size)
        same(call["g"][i], before["g"][i])


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam(dtype):
    for g_dtype in DTYPES:
        call = update_32bit(SHAPES, dtype)
        call["g"] = [g.to(g_dtype) for g in call["g"]]
        check(run_32bit, call)


def test_reference():
    for dtype in DTYPES:
        check(reference.optimizer_update_32bit, update_32bit(SHAPES, dtype))


@every_isa
@pytest.mark.parametrize(
    "changed",
    [
        {"lr": 0.0},
        {"lr": 1.0},
        {"beta1": 0.0},
        {"beta2": 0.0},
        {"beta1": 0.0, "beta2": 0.0},
        {"eps": 0.1},
        {"weight_decay": 0.0},
        {"weight_decay": 1.0},
        {"gnorm_scale": 0.25},
        {"skip_zeros": True},
    ],
    ids=str,
)
def test_hyperparameters(changed):
    call = update_32bit(((33,), (70,)), torch.float32, **changed)
    call["g"][0][::3] = 0.0
    check(run_32bit, call)


@every_isa
def test_steps():
    call = update_32bit(((33,),) * 4, torch.float32)
    call["step"] = [1, 2, 1000, 10**7]
    check(run_32bit, call)


@every_isa
def test_first_steps_from_nothing():
    call = update_32bit(((70,), (3,)), torch.float32)
    for name in ("state1", "state2"):
        call[name] = [torch.zeros_like(state) for state in call[name]]
    for step in (1, 2, 3, 4):
        call["step"] = [step] * 2
        call["g"] = [torch.randn_like(p) for p in call["p"]]
        check(run_32bit, call)


@every_isa
def test_zero_gradients_move_nothing_at_first():
    call = update_32bit(((70,),), torch.float32, weight_decay=0.0)
    for name in ("g", "state1", "state2"):
        call[name][0].zero_()
    before = copy.deepcopy(call)
    run_32bit(**call)
    for name in ("p", "state1", "state2"):
        same(call[name], before[name])


@every_isa
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_harms_its_element_alone(bad):
    for dtype in DTYPES:
        call = update_32bit(((70,),), dtype)
        expected = copy.deepcopy(call)
        run_32bit(**expected)
        call["g"][0][33] = bad
        run_32bit(**call)
        assert call["p"][0][33].isnan()
        other = torch.arange(70) != 33
        for name in ("p", "state1", "state2"):
            same(call[name][0][other], expected[name][0][other])


@every_isa
def test_strides_of_a_gradient_do_not_matter():
    call = update_32bit(((33, 47),), torch.float32)
    other = copy.deepcopy(call)
    other["g"] = [other["g"][0].t().contiguous().t()]
    run_32bit(**call)
    run_32bit(**other)
    for name in ("p", "state1", "state2"):
        same(other[name], call[name])


@every_isa
def test_no_parameters():
    run_32bit(**update_32bit((), torch.float32))  # raises nothing


@every_isa
def test_one_call_is_many_calls():
    together = update_32bit(SHAPES, torch.float32)
    alone = copy.deepcopy(together)
    run_32bit(**together)
    lists = ("g", "p", "state1", "state2", "step")
    for i in range(len(SHAPES)):
        run_32bit(**{**alone, **{name: [alone[name][i]] for name in lists}})
    for name in ("p", "state1", "state2"):
        same(alone[name], together[name])


def changed_entry(name, index, replace):
    """Return a change of one tensor of one list."""
    tensors = list(arguments("optimizer_update_32bit")[name])
    tensors[index] = replace(tensors[index])
    return {name: tensors}


def stretched(tensor):
    return tensor.new_zeros((*tensor.shape, 2))[..., 0]


LISTS = ("p", "g", "state1", "state2")
WRONG = [
    ("optimizer_name", {"optimizer_name": "sgdm"}),
    *((name, {name: arguments("optimizer_update_32bit")[name][:1]}) for name in LISTS[1:]),
    ("step", {"step": [1]}),
    ("step[1]", {"step": [1, 0]}),
    *((f"{name}[1]", changed_entry(name, 1, torch.Tensor.double)) for name in LISTS),
    *((f"{name}[1]", changed_entry(name, 1, lambda t: t.to("meta"))) for name in LISTS[1:]),
    *((f"{name}[1]", changed_entry(name, 1, lambda t: t[:-1])) for name in LISTS[1:]),
    *((f"{name}[1]", changed_entry(name, 1, lambda t: t.view(1, -1))) for name in LISTS[1:]),
    ("p[1]", changed_entry("p", 1, stretched)),
    ("state1[0]", changed_entry("state1", 0, stretched)),
    ("state2[0]", changed_entry("state2", 0, stretched)),
    ("state1[1]", changed_entry("state1", 1, torch.Tensor.half)),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("optimizer_update_32bit", argument, **changed)


def test_strides_named_in_the_error_are_those_of_the_tensor():
    call = {**arguments("optimizer_update_32bit"), **changed_entry("state1", 0, stretched)}
    with pytest.raises(ValueError, match=r"state1\[0\].*strides \(140, 2\)"):
        run_32bit(**call)
