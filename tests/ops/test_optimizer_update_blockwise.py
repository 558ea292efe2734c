"""optimizer_update_blockwise: decode the states, update, encode them again, block by block."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.conformance.samples import unpacked, update_blockwise
from bnbx.ops import OPTIMIZER_BLOCKSIZES, OPTIMIZERS, RULES

from .checks import (
    DTYPES,
    assert_nearest,
    close,
    every_isa,
    is_for_gpus,
    per_element,
    refuses,
    run,
    same,
)

#: Nothing, scalars, odd sizes, and blocks of 128 and of 256 that are whole or nearly so.
SHAPES = ((), (0,), (1,), (2,), (3, 5, 7), (127,), (128,), (129,), (255,), (256,), (257,), (4501,))
LISTS = ("g", "p", "state1", "state2", "absmax1", "absmax2")
WRITTEN = (*LISTS[1:], "unorm_vec")
every_rule = pytest.mark.parametrize("name", RULES)
both_bits = pytest.mark.parametrize("bits", OPTIMIZER_BLOCKSIZES)


def update(**call):
    return run("optimizer_update_blockwise", **call)


def states_of(call):
    """Return the names of codes, scales and map of each state."""
    return [(f"state{i}", f"absmax{i}", f"qmap{i}") for i in (1, 2) if call[f"state{i}"]]


def parts_of(codes, scales):
    """Return codes and scales of each value that a state stacks."""
    return zip(codes, scales, strict=True) if scales.dim() > 1 else [(codes, scales)]


def entries_of(codes, qmap, numel):
    """Return what the codes stand for, flat; 4-bit codes are packed, two to a byte."""
    return qmap[unpacked(codes, numel) if len(qmap) == 16 else codes.flatten().int()]


def decoded(codes, scales, qmap, bits, numel):
    return entries_of(codes, qmap, numel) * per_element(scales, OPTIMIZER_BLOCKSIZES[bits], numel)


def as_32bit(call):
    """Return the same update with the states that the codes mean."""
    wide = {name: value for name, value in call.items() if name[:-1] not in {"absmax", "qmap"}}
    bits = wide.pop("bits")
    for state, absmax, qmap in states_of(call):
        wide[state] = []
        for codes, scales, p in zip(call[state], call[absmax], call["p"], strict=True):
            values = [
                decoded(*part, call[qmap], bits, p.numel()).view(p.shape)
                for part in parts_of(codes, scales)
            ]
            wide[state].append(torch.stack(values) if scales.dim() > 1 else values[0])
    wide["p"] = [p.clone() for p in call["p"]]
    wide["unorm_vec"] = [norm.clone() for norm in call["unorm_vec"]]
    return wide


def check(operation, call):
    """Compare the parameters with the 32-bit update, the states with the nearest codes of it."""
    wide = as_32bit(call)
    gradients = copy.deepcopy(call["g"])
    assert operation(**call) is None
    reference.optimizer_update_32bit(**wide)
    same(call["g"], gradients)
    eps, blocksize = torch.finfo(torch.float32).eps, OPTIMIZER_BLOCKSIZES[call["bits"]]
    for i, p in enumerate(wide["p"]):
        rounding = p.double().abs() * torch.finfo(p.dtype).eps
        close(call["p"][i], p.double(), 8 * eps * (1 + call["alpha"]) + rounding)
        for state, absmax, qmap in states_of(call):
            stacked = call[absmax][i].dim() > 1
            news = wide[state][i].unbind() if stacked else [wide[state][i]]
            parts = parts_of(call[state][i], call[absmax][i])
            for (codes, scales), new in zip(parts, news, strict=True):
                blocks = new.flatten().split(blocksize) if new.numel() else ()
                expected = torch.tensor([block.abs().max() for block in blocks])
                close(scales, expected.double(), 8 * eps * expected.double())
                entries = entries_of(codes, call[qmap], p.numel())
                assert_nearest(entries, new, scales, call[qmap], blocksize)
    for found, wanted in zip(call["unorm_vec"], wide["unorm_vec"], strict=True):
        close(found, wanted.double(), 1e-5 * wanted.double())


@every_isa
@both_bits
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule(name, dtype, bits):
    for g_dtype in DTYPES if name == "adam" else (dtype,):
        call = update_blockwise(bits, SHAPES, dtype, name)
        call["g"] = [g.to(g_dtype) for g in call["g"]]
        check(update, call)


@both_bits
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reference(name, bits):
    for dtype in DTYPES:
        call = update_blockwise(bits, SHAPES, dtype, name)
        check(reference.optimizer_update_blockwise, call)


@every_isa
@both_bits
@every_rule
@pytest.mark.parametrize(
    "changed",
    [
        {"lr": 0.0},
        {"beta1": 0.0},
        {"eps": 0.1},
        {"weight_decay": 0.0},
        {"gnorm_scale": -0.25},
        {"skip_zeros": True},
        {"max_unorm": 1e-3},
        {"max_unorm": 0.1, "skip_zeros": True},
    ],
    ids=str,
)
def test_hyperparameters(changed, name, bits):
    call = update_blockwise(bits, ((33,), (700,), (5000,)), torch.float32, name, **changed)
    call["g"][0][::3] = 0.0
    check(update, call)


@every_isa
@both_bits
@every_rule
def test_first_steps_from_nothing(name, bits):
    call = update_blockwise(bits, ((700,), (3,)), torch.float32, name)
    for state, absmax, _ in states_of(call):
        call[state] = [torch.zeros_like(codes) for codes in call[state]]
        call[absmax] = [torch.zeros_like(scales) for scales in call[absmax]]
    for step in (1, 2, 3, 4):
        call["step"] = [step] * 2
        call["g"] = [torch.randn_like(p) for p in call["p"]]
        check(update, call)


@every_isa
@both_bits
@every_rule
def test_the_bytes_are_those_of_the_reference(name, bits):
    """The spare nibble of an odd size too; a value at a boundary may be either of two codes."""
    call = update_blockwise(bits, SHAPES, torch.float32, name)
    expected = copy.deepcopy(call)
    update(**call)
    reference.optimizer_update_blockwise(**expected)
    for state, _, _ in states_of(call):
        for codes, wanted in zip(call[state], expected[state], strict=True):
            assert (codes != wanted).sum() <= max(1, codes.numel() // 1000)


@every_isa
@both_bits
@every_rule
def test_skipped_elements_keep_their_parameter(name, bits):
    call = update_blockwise(bits, ((300,),), torch.float32, name, skip_zeros=True)
    call["g"][0].zero_()
    before = copy.deepcopy(call)
    update(**call)
    same(call["p"], before["p"])


@every_isa
@both_bits
@every_rule
@pytest.mark.parametrize("limit", [0.0, 1e6])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_harms_its_block_alone(bad, limit, name, bits):
    call = update_blockwise(bits, ((700,),), torch.float32, name, max_unorm=limit)
    expected = copy.deepcopy(call)
    update(**expected)
    call["g"][0][300] = bad
    update(**call)
    assert name == "lion" or not call["p"][0][300].isfinite()
    if math.isnan(bad) or limit == 0.0:  # an infinite update is shortened, and all of it
        other = torch.arange(700) != 300
        same(call["p"][0][other], expected["p"][0][other])
    blocksize = OPTIMIZER_BLOCKSIZES[bits]
    harmed = torch.arange(700) // blocksize == 300 // blocksize
    for state, absmax, qmap in states_of(call):
        found, wanted = (parts_of(x[state][0], x[absmax][0]) for x in (call, expected))
        for pair in zip(found, wanted, strict=True):
            values, others = (decoded(*part, call[qmap], bits, 700) for part in pair)
            assert values[harmed].isnan().all()
            same(values[~harmed], others[~harmed])


@every_isa
@both_bits
@every_rule
def test_strides_of_a_gradient_do_not_matter(name, bits):
    call = update_blockwise(bits, ((33, 47),), torch.float32, name)
    other = copy.deepcopy(call)
    other["g"] = [other["g"][0].t().contiguous().t()]
    update(**call)
    update(**other)
    for argument in WRITTEN:
        same(other[argument], call[argument])


def moved_by_one(tensor):
    """Return a copy whose memory begins one element after that of its storage."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


@every_isa
@both_bits
@every_rule
@pytest.mark.parametrize("moved", [(name,) for name in LISTS] + [LISTS], ids=str)
def test_memory_may_begin_at_any_element(moved, name, bits):
    call = update_blockwise(bits, ((700,), (1030,)), torch.bfloat16, name)
    other = copy.deepcopy(call)
    for argument in moved:
        other[argument] = [moved_by_one(tensor) for tensor in other[argument]]
    update(**call)
    update(**other)
    for argument in WRITTEN:
        same(other[argument], call[argument])


@every_isa
@both_bits
@every_rule
def test_no_parameters(name, bits):
    update(**update_blockwise(bits, (), torch.float32, name))  # raises nothing


@every_isa
@both_bits
@every_rule
@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_one_call_is_many_calls(limit, name, bits):
    together = update_blockwise(bits, (*SHAPES, (20_001,)), torch.float32, name, max_unorm=limit)
    alone = copy.deepcopy(together)
    update(**together)
    lists = [argument for argument in ("g", *WRITTEN, "step") if together[argument]]
    for i in range(len(SHAPES) + 1):
        update(**{**alone, **{argument: [alone[argument][i]] for argument in lists}})
    for argument in WRITTEN:
        same(alone[argument], together[argument])


@every_isa
@both_bits
@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_many_parameters(limit, bits):
    """More than the arguments of one kernel hold, of every dtype and at different steps."""
    shapes = tuple((3 + 37 * (i % 11),) for i in range(90))
    together = update_blockwise(bits, shapes, torch.float32, max_unorm=limit)
    together["step"] = [1 + i % 2 for i in range(90)]
    together["p"] = [p.to(DTYPES[i % 3]) for i, p in enumerate(together["p"])]
    alone = copy.deepcopy(together)
    update(**together)
    lists = [argument for argument in ("g", *WRITTEN, "step") if together[argument]]
    for i in range(90):
        update(**{**alone, **{argument: [alone[argument][i]] for argument in lists}})
    for argument in WRITTEN:
        same(alone[argument], together[argument])


@every_isa
@both_bits
def test_the_number_of_threads_changes_no_bit(bits):
    call = update_blockwise(bits, ((100_003,), (77,)), torch.bfloat16)
    alone = copy.deepcopy(call)
    threads = torch.get_num_threads()
    for arguments, count in ((call, 3), (alone, 1)):
        torch.set_num_threads(count)
        update(**arguments)
    torch.set_num_threads(threads)
    for argument in WRITTEN:
        same(alone[argument], call[argument])


def good_call(bits):
    return update_blockwise(bits, ((5, 70), (5,)), torch.float32)


@both_bits
@pytest.mark.parametrize("qmap", ["qmap1", "qmap2"])
def test_a_map_out_of_order_is_refused(isa, qmap, bits):
    call = good_call(bits)
    call[qmap] = call[qmap].flip(0)
    if is_for_gpus(isa):  # what only the device can read is not refused, and does no harm
        torch.ops.bnbx.optimizer_update_blockwise(**call)
        assert all(p.isfinite().all() for p in call["p"])
    else:
        refuses("optimizer_update_blockwise", qmap, **call)


def stretched(tensor):
    return tensor.new_zeros((*tensor.shape, 2))[..., 0]


#: A list, which of its tensors, and what is put in the place of that one.
WRONG_ENTRIES = [
    *((name, 1, torch.Tensor.double) for name in LISTS),
    *((name, 1, lambda t: t.to("meta")) for name in LISTS[2:]),
    *((name, 1, lambda t: t.new_zeros(9)) for name in LISTS if name != "p"),
    *((name, 0, lambda t: t[:-1]) for name in LISTS[2:]),
    *((name, 0, stretched) for name in LISTS[1:]),
    ("state1", 1, torch.Tensor.char),
    ("state1", 0, lambda t: t.repeat_interleave(2)),  # a byte for each code of 4 bits
    ("absmax1", 1, torch.Tensor.half),
]


@both_bits
@pytest.mark.parametrize(("name", "index", "replace"), WRONG_ENTRIES)
def test_refuses_a_tensor(name, index, replace, bits):
    call = good_call(bits)
    call[name][index] = replace(call[name][index])
    refuses("optimizer_update_blockwise", f"{name}[{index}]", **call)


WRONG = [
    ("optimizer_name", {"optimizer_name": "Adam"}),
    ("bits", {"bits": 5}),
    *((name, {name: []}) for name in (*LISTS, "step") if name != "p"),
    ("step[0]", {"step": [-1, 1]}),
    ("state2", {"optimizer_name": "lion"}),
    ("absmax2", {"optimizer_name": "lion", "state2": []}),
    ("qmap2", {"optimizer_name": "lion", "state2": [], "absmax2": []}),
    ("qmap2", {"qmap2": None}),
    ("unorm_vec", {"max_unorm": 1.0}),
]


@both_bits
@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed, bits):
    refuses("optimizer_update_blockwise", argument, **{**good_call(bits), **changed})


@both_bits
@pytest.mark.parametrize("qmap", ["qmap1", "qmap2"])
def test_refuses_a_map(qmap, bits):
    good = torch.zeros(2**bits)
    for wrong in (torch.zeros(272 - 2**bits), good.double(), good.to("meta")):
        refuses("optimizer_update_blockwise", qmap, **{**good_call(bits), qmap: wrong})
