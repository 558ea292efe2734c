"""Parameters of bfloat16 rounded at random, or with a compensation, by every optimizer update."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.backends.reference_rounding import random_bits, rounded_stochastically, with_rest
from bnbx.conformance.samples import update_32bit, update_blockwise

from .checks import every_isa, refuses, run, same

SHAPES = ((), (0,), (1,), (17,), (257,), (33, 47), (5001,))
every_operation = pytest.mark.parametrize("bits", [32, 8, 4])
WRITTEN = ("p", "state1", "state2", "compensation")


def call_of(bits, shapes, dtype, **changed):
    if bits == 32:
        return update_32bit(shapes, dtype, **changed)
    return update_blockwise(bits, shapes, dtype, **changed)


def operation_of(call):
    return "optimizer_update_blockwise" if "bits" in call else "optimizer_update_32bit"


def update(call):
    run(operation_of(call), **call)


def update_by_reference(call):
    getattr(reference, operation_of(call))(**call)


def stochastic(bits, shapes=SHAPES, **changed):
    call = call_of(bits, shapes, torch.bfloat16, **changed)
    return {**call, "seed": [2**62 + 12345 * i for i, _ in enumerate(shapes)]}


def compensated(bits, shapes=SHAPES, **changed):
    call = call_of(bits, shapes, torch.bfloat16, **changed)
    rests = [torch.rand(p.shape) * p.float().abs() / 512 for p in call["p"]]
    return {**call, "compensation": [rest.bfloat16() for rest in rests]}


def results(call):
    return [call[key] for key in WRITTEN if call.get(key)]


def noise(seed, step, index):
    """The 16 random bits of one element, in Python's integers."""
    word, long = 2**32 - 1, 2**64 - 1
    z = (seed + step * 0x9E3779B97F4A7C15) & long
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & long
    z = (z ^ z >> 27) * 0x94D049BB133111EB & long
    z ^= z >> 31
    x = index ^ z & word
    x = (x ^ x >> 16) * 0x7FEB352D & word
    x = (x ^ x >> 15) + (z >> 32) & word
    x = x * 0x846CA68B & word
    return x ^ x >> 16


def test_random_bits_are_those_of_the_definition():
    for seed, step in ((0, 1), (2**63 - 2, 7), (987654321, 10**6)):
        found = random_bits(seed, step, 100, torch.device("cpu")).tolist()
        assert found == [noise(seed, step, i) for i in range(100)]


def test_random_bits_are_even_and_independent():
    bits = torch.stack([random_bits(5, step, 2**16, torch.device("cpu")) for step in (1, 2, 3)])
    low = (bits & 0xFFFF).double() / 65536
    assert (low.mean(dim=1) - 0.5).abs().max() < 5 / math.sqrt(12 * 2**16)
    ones = torch.stack([(bits >> i & 1).double().mean(dim=1) for i in range(32)])
    assert (ones - 0.5).abs().max() < 5 * 0.5 / 2**8
    flat = torch.cat([low[:, :-1], low[:1, 1:]])  # steps with each other, and with neighbours
    correlation = torch.corrcoef(flat) - torch.eye(4)
    assert correlation.abs().max() < 5 / 2**8


@every_isa
@pytest.mark.parametrize("dtype_of_g", [torch.float32, torch.bfloat16])
@every_operation
def test_stochastic_rounding_is_that_of_the_reference(bits, dtype_of_g):
    """Bit for bit, but where the float32 value before it is off in its last place."""
    call = stochastic(bits)
    call["g"] = [g.to(dtype_of_g) for g in call["g"]]
    expected = copy.deepcopy(call)
    update(call)
    update_by_reference(expected)
    for p, wanted in zip(call["p"], expected["p"], strict=True):
        assert (p != wanted).sum() <= max(1, p.numel() // 100)
        torch.testing.assert_close(p, wanted, rtol=2**-7, atol=1e-30)


@every_isa
@every_operation
def test_values_between_two_bfloat16(bits):
    """With lr=0 nothing but the rounding is left, and a bfloat16 stays what it is."""
    call = stochastic(bits, lr=0.0)
    before = copy.deepcopy(call["p"])
    update(call)
    same(call["p"], before)


def moved(seed, steps=1, numel=40_000, lr=2.0**-12, step=1, bits=32):
    """Return parameters of 1 that Lion has moved by ``lr`` in each step."""
    call = stochastic(bits, ((numel,),), name="lion", lr=lr, weight_decay=0.0)
    call["p"], call["g"] = [torch.ones(numel).bfloat16()], [torch.full((numel,), -1e6)]
    call["seed"] = [seed]
    for number in range(step, step + steps):
        call["step"] = [number]
        update(call)
    return call["p"][0]


@every_isa
@every_operation
def test_the_mean_is_exact(bits):
    """A step of a 32th of the spacing of bfloat16, which rounding to the nearest loses."""
    numel, spacing, step = 40_000, 2.0**-7, 2.0**-12
    p = moved(3, numel=numel, bits=bits).double()
    assert torch.equal(p.unique(), torch.tensor([1.0, 1.0 + spacing]).double())
    share = step / spacing
    deviation = spacing * math.sqrt(share * (1 - share) / numel)
    assert abs(p.mean() - 1.0 - step) < 4 * deviation


@every_isa
def test_many_small_steps_add_up():
    p = moved(3, steps=200).double()
    deviation = 2.0**-7 * math.sqrt(200 / 32 / 40_000)
    assert abs(p.mean() - 1.0 - 200 * 2.0**-12) < 4 * deviation


@every_isa
def test_seeds_and_steps_give_other_bits_and_the_same_ones_the_same():
    first = moved(1)
    same(moved(1), first)
    for other in (moved(2), moved(1, step=2)):
        agreeing = (other != 1) & (first != 1)
        assert 0.5 < agreeing.sum() / (40_000 / 32**2) < 1.7


@every_isa
@every_operation
@pytest.mark.parametrize("make", [stochastic, compensated])
def test_threads_and_lists_change_no_bit(make, bits):
    together = make(bits, (*SHAPES, (70_001,)))
    alone = copy.deepcopy(together)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    update(together)
    torch.set_num_threads(1)
    lists = [key for key, value in alone.items() if isinstance(value, list) and value]
    for i in range(len(SHAPES) + 1):
        update({**alone, **{key: alone[key][i : i + 1] for key in lists}})
    torch.set_num_threads(threads)
    same(results(alone), results(together))


LARGEST = torch.finfo(torch.bfloat16).max


def test_rounding_at_the_ends():
    values = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, LARGEST, 0.0, -0.0])
    rounded = torch.stack([rounded_stochastically(values, seed, 1) for seed in range(200)])
    expected = [math.inf, -math.inf, math.nan, LARGEST, -LARGEST, LARGEST, 0.0, -0.0]
    same(rounded, torch.tensor(expected).bfloat16().expand(200, -1))
    tiny = torch.full((4096,), 2.0**-135)  # a quarter of the smallest bfloat16
    found = rounded_stochastically(tiny, 1, 1).double()
    assert torch.equal(found.unique(), torch.tensor([0.0, 2.0**-133]).double())
    assert 0.2 < (found > 0).double().mean() < 0.3


@every_isa
@pytest.mark.parametrize(("lr", "end"), [(3e37, math.inf), (5e35, LARGEST)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_kernels_round_at_the_ends_as_the_reference(bad, lr, end):
    call = stochastic(32, ((300,),), name="lion", weight_decay=0.0)
    call["lr"] = lr
    call["p"][0][:100] = LARGEST
    call["p"][0][100:200] = -LARGEST
    call["p"][0][7] = bad
    call["g"][0][:] = 1e6
    call["g"][0][:100] = -1e6
    expected = copy.deepcopy(call)
    update(call)
    update_by_reference(expected)
    same(call["p"], expected["p"])
    same(call["p"][0][8:200], torch.tensor([end] * 92 + [-end] * 100).bfloat16())


@every_isa
@every_operation
def test_a_compensated_parameter_is_the_sum(bits):
    """As if the sum, in float32, had been updated, but for the rounding of the rest."""
    call = compensated(bits)
    wide = copy.deepcopy({k: v for k, v in call.items() if k != "compensation"})
    sums = [p.float() + c.float() for p, c in zip(call["p"], call["compensation"], strict=True)]
    wide["p"] = sums
    update(call)
    update(wide)
    for p, rest, wanted in zip(call["p"], call["compensation"], wide["p"], strict=True):
        torch.testing.assert_close(p.float() + rest.float(), wanted, rtol=2**-16, atol=1e-38)
        same(p, (p.float() + rest.float()).bfloat16())  # the nearest to the sum
    same(call["state1"], wide["state1"])


@every_isa
@every_operation
def test_a_compensated_parameter_is_that_of_the_reference(bits):
    call = compensated(bits)
    expected = copy.deepcopy(call)
    update(call)
    update_by_reference(expected)
    for argument in ("p", "compensation"):
        for got, wanted in zip(call[argument], expected[argument], strict=True):
            assert (got != wanted).sum() <= max(1, got.numel() // 50)


@every_isa
@every_operation
def test_a_rest_next_to_a_tie_moves_no_parameter(bits):
    call = compensated(bits, ((4096,),), lr=0.0)
    values = (torch.randn(4096).bfloat16().float().view(torch.int32) | 0x7FFF).view(torch.float32)
    p, rest = with_rest(values)
    same((p.float() + rest.float()).bfloat16(), p)
    call["p"], call["compensation"] = [p.clone()], [rest.clone()]
    update(call)
    same(call["p"], [p])
    same(call["compensation"], [rest])


@every_isa
def test_small_steps_add_up_with_a_compensation():
    """500 steps of a 128th of the spacing: the sum is right to 2**-16, plain bfloat16 stays."""
    call = compensated(32, ((100,),), name="lion", lr=2.0**-14)
    call |= {"weight_decay": 0.0, "g": [torch.full((100,), -1e6)]}
    call |= {"p": [torch.ones(100).bfloat16()], "compensation": [torch.zeros(100).bfloat16()]}
    plain = {**copy.deepcopy(call), "compensation": None}
    for step in range(1, 501):
        for each in (call, plain):
            each["step"] = [step]
            update(each)
    exact = 1.0 + 500 * 2.0**-14
    found = call["p"][0].double() + call["compensation"][0].double()
    assert (found - exact).abs().max() <= 2.0**-16
    assert torch.equal(plain["p"][0], torch.ones(100).bfloat16())


@every_isa
@every_operation
@pytest.mark.parametrize("make", [stochastic, compensated])
def test_a_gradient_of_nan_harms_its_element_alone(make, bits):
    call = make(bits, ((700,),))
    expected = copy.deepcopy(call)
    update(expected)
    call["g"][0][300] = math.nan
    update(call)
    assert call["p"][0][300].isnan()
    other = torch.arange(700) != 300
    same(call["p"][0][other], expected["p"][0][other])


@every_operation
@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("p[0]", {"seed": [1, 2]}),  # float32
        ("p[0]", {"compensation": [torch.zeros(5, 70), torch.zeros(5)]}),
        ("seed", {"seed": [1]}),
        ("compensation", {"compensation": []}),
        ("seed", {"seed": [1, 2], "compensation": [torch.zeros(5, 70), torch.zeros(5)]}),
    ],
)
def test_refuses(bits, argument, changed):
    call = {**call_of(bits, ((5, 70), (5,)), torch.float32), **changed}
    refuses(operation_of(call), argument, **call)


@every_operation
@pytest.mark.parametrize(
    "rest",
    [
        torch.zeros(5, 70),
        torch.zeros(70, 5, dtype=torch.bfloat16),
        torch.zeros(70, 5, dtype=torch.bfloat16).t(),
        torch.zeros(5, 70, dtype=torch.bfloat16, device="meta"),
    ],
)
def test_refuses_a_compensation_that_does_not_fit(bits, rest):
    call = compensated(bits, ((5, 70), (5,)))
    call["compensation"][0] = rest
    with pytest.raises(ValueError, match=r"^compensation\[0\]: expected"):
        update(call)
