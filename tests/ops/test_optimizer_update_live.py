"""The ``live`` argument of the optimizer updates: numbers in a tensor, a row for each parameter."""

from __future__ import annotations

import copy

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import update_32bit, update_blockwise
from bnbx.ops import RULES

from .checks import every_isa, refuses, run

SHAPES = ((), (0,), (33,), (257,), (5001,))
WRITTEN = ("p", "state1", "state2", "absmax1", "absmax2", "unorm_vec")
#: The arguments that are in the tensor beside the step, and what they are otherwise then.
LIVE = {"lr": 0.0, "beta3": 0.0, "alpha": 0.0, "gnorm_scale": 1.0}


def call_of(bits, **changed):
    if bits == 32:
        return "optimizer_update_32bit", update_32bit(SHAPES, torch.float32, **changed)
    return "optimizer_update_blockwise", update_blockwise(bits, SHAPES, torch.float32, **changed)


def with_live(call):
    """Return the same update with the numbers in a tensor; of its own tensors."""
    numbers = [[step, *(call[name] for name in LIVE)] for step in call["step"]]
    live = torch.tensor(numbers, dtype=torch.float64)
    return {**copy.deepcopy(call), "step": [], **LIVE, "live": live}


def assert_alike(found, expected):
    """Assert that all but codes at a boundary, of which there are few, agree to the last digits."""
    for name in WRITTEN:
        for got, wanted in zip(found.get(name, []), expected.get(name, []), strict=True):
            if got.dtype is torch.uint8:
                assert (got != wanted).sum() <= max(1, got.numel() // 1000)
            else:
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@every_isa
@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("limit", [0.0, 0.1])
@pytest.mark.parametrize("name", RULES)
def test_live_numbers_are_those_of_the_arguments(name, limit, bits):
    operation, call = call_of(bits, name=name, max_unorm=limit, gnorm_scale=-0.7)
    call["step"] = [1, 2, 3, 1000, 10**7]
    live, by_reference = with_live(call), with_live(call)
    run(operation, **call)
    run(operation, **live)
    getattr(reference, operation)(**by_reference)
    assert_alike(live, call)
    assert_alike(by_reference, call)


@every_isa
def test_each_parameter_has_its_own():
    operation, call = call_of(32, name="lion")
    live = with_live(call)
    live["live"][3, 1] = 0.0  # lr
    before = copy.deepcopy(live)
    run(operation, **live)
    assert torch.equal(live["p"][3], before["p"][3])
    assert not torch.equal(live["p"][4], before["p"][4])


@every_isa
def test_each_gradient_has_its_own_factor():
    operation, call = call_of(32, name="momentum")
    live = with_live(call)
    live["live"][3, 4] = 0.25
    call["g"][3] = call["g"][3] * 0.25  # a power of two: the same bits
    run(operation, **live)
    run(operation, **call)
    assert all(torch.equal(p, q) for p, q in zip(live["p"], call["p"], strict=True))


@every_isa
def test_random_bits_follow_from_the_step_in_the_tensor():
    call = update_32bit(SHAPES, torch.bfloat16)
    call["seed"] = [1, -2, 2**63 - 1, -(2**63), 5]
    call["step"] = [1, 2, 3, 1000, 10**7]
    live, by_reference = with_live(call), with_live(call)
    for update, found in ((run, live), (run, call)):
        update("optimizer_update_32bit", **found)
    reference.optimizer_update_32bit(**by_reference)
    for p, q, r in zip(live["p"], call["p"], by_reference["p"], strict=True):
        # Where the last bit of what is rounded is another one, few are rounded another way.
        assert (p != q).sum() <= p.numel() // 1000
        assert (p != r).sum() <= p.numel() // 100


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("step", {"step": [1] * 5}),
        *((name, {name: 0.5}) for name in LIVE),
        ("live", {"live": torch.zeros(5, 5)}),
        ("live", {"live": torch.zeros(5, 4, dtype=torch.float64)}),
        ("live", {"live": torch.zeros(5, 5, dtype=torch.float64).t()}),
        ("live", {"live": torch.zeros(5, 5, dtype=torch.float64, device="meta")}),
    ],
)
def test_refuses(argument, changed, bits):
    operation, call = call_of(bits)
    refuses(operation, argument, **{**with_live(call), **changed})
