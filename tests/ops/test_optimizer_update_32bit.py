"""optimizer_update_32bit: the update rule of each optimizer, in place, for a list of parameters."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import arguments, update_32bit
from bnbx.ops import OPTIMIZERS, RULES

from . import rules
from .checks import DTYPES, close, every_isa, refuses, run, same

#: Nothing, scalars, partial vectors, more than one chunk and more than one thread's share.
SHAPES = ((), (0,), (4, 0), (1,), (7,), (16,), (3, 5, 7), (255,), (257,), (20_001,))


def run_32bit(**call):
    return run("optimizer_update_32bit", **call)


def check(update, call):
    """Run the update and compare each tensor with the rule in float64."""
    before = copy.deepcopy(call)
    assert update(**call) is None
    eps = torch.finfo(torch.float32).eps
    names = [name for name in ("state1", "state2") if call[name]]
    for i, (g, p) in enumerate(zip(before["g"], before["p"], strict=True)):
        states = [before[name][i] for name in names]
        expected, moved, unorm = rules.update(
            call["optimizer_name"], before, before["step"][i], g, p, *states
        )
        size = p.double().abs() + (expected - p.double()).abs()
        # A direction is a quotient of sums of terms of both signs, which may nearly cancel.
        size += 2 * call["lr"] * (1 + call["alpha"])
        close(call["p"][i], expected, 8 * eps * size)
        for name, exact, old in zip(names, moved, states, strict=True):
            terms = old.abs() + g.double().abs() + g.double() ** 2 + p.double().abs()
            close(call[name][i], exact, 16 * eps * (exact.abs() + terms))
        if call["unorm_vec"]:
            close(call["unorm_vec"][i], unorm.view(1), 1e-6 * unorm)
        same(call["g"][i], g)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule(name, dtype):
    for g_dtype in DTYPES if name == "adam" else (dtype,):
        call = update_32bit(SHAPES, dtype, name)
        call["g"] = [g.to(g_dtype) for g in call["g"]]
        check(run_32bit, call)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reference(name):
    for dtype in DTYPES:
        check(reference.optimizer_update_32bit, update_32bit(SHAPES, dtype, name))


CHANGES = [
    {"lr": 0.0},
    {"lr": 1.0},
    {"beta1": 0.0},
    {"beta2": 0.0},
    {"beta1": 0.0, "beta2": 0.0},
    {"beta3": 0.0},
    {"alpha": 0.0},
    {"eps": 0.1},
    {"weight_decay": 0.0},
    {"weight_decay": 1.0},
    {"gnorm_scale": 0.25},
    {"gnorm_scale": -1.0},
    {"skip_zeros": True},
    {"max_unorm": 1e-3},
    {"max_unorm": 1e6},
    {"max_unorm": 0.1, "skip_zeros": True, "gnorm_scale": 2.0},
]


def set_zeros(call):
    if call["beta2"] > 0.0:  # or a direction is a sum over eps, and its rounding anything
        for g in call["g"]:
            g[::3] = 0.0


@every_isa
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("changed", CHANGES, ids=str)
def test_hyperparameters(changed, name):
    call = update_32bit(((33,), (70,), (5000,)), torch.float32, name, **changed)
    set_zeros(call)
    check(run_32bit, call)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("changed", CHANGES, ids=str)
def test_reference_hyperparameters(changed, name):
    call = update_32bit(((70,),), torch.float32, name, **changed)
    set_zeros(call)
    check(reference.optimizer_update_32bit, call)


@every_isa
@pytest.mark.parametrize("name", RULES)
def test_a_limited_update_has_the_norm_of_the_limit(name):
    call = update_32bit(((300,),), torch.float32, name, max_unorm=1e-2, weight_decay=0.0, lr=1.0)
    before = call["p"][0].clone()
    run_32bit(**call)
    moved = (call["p"][0] - before).norm()
    torch.testing.assert_close(moved, 1e-2 * before.norm(), rtol=1e-4, atol=0.0)


@every_isa
def test_zeros_are_not_held_back_by_their_norm():
    for update in (run_32bit, reference.optimizer_update_32bit):
        call = update_32bit(((300,),), torch.float32, "lamb", max_unorm=1e-2)
        call["p"][0].zero_()
        check(update, call)
        assert (call["p"][0] != 0.0).all()


every_rule = pytest.mark.parametrize("name", RULES)
WRITTEN = ("p", "state1", "state2", "unorm_vec")


@every_isa
@every_rule
def test_steps(name):
    call = update_32bit(((33,),) * 4, torch.float32, name)
    call["step"] = [1, 2, 1000, 10**7]
    check(run_32bit, call)


@every_isa
@every_rule
def test_first_steps_from_nothing(name):
    call = update_32bit(((70,), (3,)), torch.float32, name)
    for state in ("state1", "state2"):
        call[state] = [torch.zeros_like(t) for t in call[state]]
    for step in (1, 2, 3, 4):
        call["step"] = [step] * 2
        call["g"] = [torch.randn_like(p) for p in call["p"]]
        check(run_32bit, call)


@every_isa
@every_rule
def test_zero_gradients_move_nothing_at_first(name):
    call = update_32bit(((70,),), torch.float32, name, weight_decay=0.0)
    for argument in ("g", "state1", "state2"):
        for tensor in call[argument]:
            tensor.zero_()
    before = copy.deepcopy(call)
    run_32bit(**call)
    for argument in WRITTEN:
        same(call[argument], before[argument])


@every_isa
@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_harms_its_element_alone(bad, name):
    for dtype in DTYPES:
        call = update_32bit(((70,),), dtype, name)
        expected = copy.deepcopy(call)
        run_32bit(**expected)
        call["g"][0][33] = bad
        run_32bit(**call)
        assert not call["state1"][0][..., 33].isfinite().any()
        assert name == "lion" or not call["p"][0][33].isfinite()
        other = torch.arange(70) != 33
        for argument in WRITTEN:
            for found, wanted in zip(call[argument], expected[argument], strict=True):
                same(found[..., other], wanted[..., other])


@every_isa
@every_rule
@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_a_nan_limits_no_other_element(limit, name):
    call = update_32bit(((5000,),), torch.float32, name, max_unorm=limit)
    call["g"][0][33] = math.nan
    run_32bit(**call)
    assert call["p"][0].isnan().nonzero().tolist() == [[33]]


@every_isa
@every_rule
def test_strides_of_a_gradient_do_not_matter(name):
    call = update_32bit(((33, 47),), torch.float32, name)
    other = copy.deepcopy(call)
    other["g"] = [other["g"][0].t().contiguous().t()]
    run_32bit(**call)
    run_32bit(**other)
    for argument in WRITTEN:
        same(other[argument], call[argument])


def moved_by_one(tensor):
    """Return a copy whose memory begins one element after that of its storage."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


@every_isa
@every_rule
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("moved", ["g", "p", "state1", "state2"])
def test_memory_may_begin_at_any_element(moved, dtype, name):
    call = update_32bit(((700,), (1030,)), dtype, name)
    other = copy.deepcopy(call)
    other[moved] = [moved_by_one(tensor) for tensor in other[moved]]
    run_32bit(**call)
    run_32bit(**other)
    for argument in WRITTEN:
        same(other[argument], call[argument])


@every_isa
@every_rule
def test_no_parameters(name):
    run_32bit(**update_32bit((), torch.float32, name))  # raises nothing


@every_isa
@every_rule
@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_one_call_is_many_calls(limit, name):
    together = update_32bit(SHAPES, torch.float32, name, max_unorm=limit)
    alone = copy.deepcopy(together)
    run_32bit(**together)
    lists = [argument for argument in ("g", *WRITTEN, "step") if together[argument]]
    for i in range(len(SHAPES)):
        run_32bit(**{**alone, **{argument: [alone[argument][i]] for argument in lists}})
    for argument in WRITTEN:
        same(alone[argument], together[argument])


@every_isa
@every_rule
def test_the_number_of_threads_changes_no_bit(name):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            call = update_32bit(SHAPES, torch.bfloat16, name, max_unorm=0.01)
            run_32bit(**call)
            found.append([call[argument] for argument in WRITTEN])
    finally:
        torch.set_num_threads(before)
    same(found[0], found[1])
    same(found[0], found[2])


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
    ("state2", {"optimizer_name": "lion"}),
    ("state1[0]", {"optimizer_name": "ademamix"}),
    ("max_unorm", {"max_unorm": -1.0}),
    ("max_unorm", {"max_unorm": math.nan}),
    ("unorm_vec", {"max_unorm": 1.0}),
    ("unorm_vec", {"unorm_vec": [torch.zeros(1)] * 2}),
    ("unorm_vec[1]", {"max_unorm": 1.0, "unorm_vec": [torch.zeros(1), torch.zeros(2)]}),
    ("unorm_vec[0]", {"max_unorm": 1.0, "unorm_vec": [torch.zeros(1).half()] * 2}),
    ("unorm_vec[0]", {"max_unorm": 1.0, "unorm_vec": [torch.zeros(1, device="meta")] * 2}),
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
