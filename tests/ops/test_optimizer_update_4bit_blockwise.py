"""optimizer_update_4bit_blockwise: packed codes in blocks of 128, two to a byte."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.ops import OPTIMIZERS, RULES

from .checks import DTYPES, assert_nearest, close, every_isa, per_element, refuses, run, same
from .samples import arguments, unpacked, update_4bit

BLOCKSIZE = 128
SHAPES = ((), (0,), (1,), (2,), (3, 5, 7), (127,), (128,), (129,), (255,), (300,), (9001,))
LISTS = ("g", "p", "state1", "state2", "absmax1", "absmax2")
WRITTEN = (*LISTS[1:], "unorm_vec")
every_rule = pytest.mark.parametrize("name", RULES)


def run_4bit(**call):
    return run("optimizer_update_4bit_blockwise", **call)


def states_of(call):
    """Return the names of codes, scales and map of each state."""
    return [(f"state{i}", f"absmax{i}", f"qmap{i}") for i in (1, 2) if call[f"state{i}"]]


def parts_of(codes, scales):
    """Return codes and scales of each value that a state stacks."""
    return zip(codes, scales, strict=True) if codes.dim() > 1 else [(codes, scales)]


def decoded(codes, scales, qmap, numel):
    return qmap[unpacked(codes, numel)] * per_element(scales, BLOCKSIZE, numel)


def as_32bit(call):
    """Return the same update with the states that the codes mean."""
    wide = {name: value for name, value in call.items() if name[:-1] not in {"absmax", "qmap"}}
    for state, absmax, qmap in states_of(call):
        wide[state] = []
        for codes, scales, p in zip(call[state], call[absmax], call["p"], strict=True):
            parts = parts_of(codes, scales)
            values = [decoded(*part, call[qmap], p.numel()).view(p.shape) for part in parts]
            wide[state].append(torch.stack(values) if codes.dim() > 1 else values[0])
    wide["p"] = [p.clone() for p in call["p"]]
    wide["unorm_vec"] = [norm.clone() for norm in call["unorm_vec"]]
    return wide


def check(update, call):
    """Compare the parameters with the 32-bit update, the states with the nearest codes of it."""
    wide = as_32bit(call)
    gradients = copy.deepcopy(call["g"])
    assert update(**call) is None
    reference.optimizer_update_32bit(**wide)
    same(call["g"], gradients)
    eps = torch.finfo(torch.float32).eps
    for i, p in enumerate(wide["p"]):
        rounding = p.double().abs() * torch.finfo(p.dtype).eps
        close(call["p"][i], p.double(), 8 * eps * (1 + call["alpha"]) + rounding)
        for state, absmax, qmap in states_of(call):
            codes = call[state][i]
            news = wide[state][i].unbind() if codes.dim() > 1 else [wide[state][i]]
            for (part, scales), new in zip(parts_of(codes, call[absmax][i]), news, strict=True):
                blocks = new.flatten().split(BLOCKSIZE) if new.numel() else ()
                expected = torch.tensor([block.abs().max() for block in blocks])
                close(scales, expected.double(), 8 * eps * expected.double())
                entries = call[qmap][unpacked(part, p.numel())]
                assert_nearest(entries, new, scales, call[qmap], BLOCKSIZE)
    for found, wanted in zip(call["unorm_vec"], wide["unorm_vec"], strict=True):
        close(found, wanted.double(), 1e-5 * wanted.double())


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule(name, dtype):
    for g_dtype in DTYPES if name == "adam" else (dtype,):
        call = update_4bit(SHAPES, dtype, name)
        call["g"] = [g.to(g_dtype) for g in call["g"]]
        check(run_4bit, call)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reference(name):
    for dtype in DTYPES:
        check(reference.optimizer_update_4bit_blockwise, update_4bit(SHAPES, dtype, name))


@every_isa
@every_rule
@pytest.mark.parametrize(
    "changed",
    [{"gnorm_scale": -0.25}, {"skip_zeros": True}, {"max_unorm": 0.1, "skip_zeros": True}],
    ids=str,
)
def test_hyperparameters(changed, name):
    call = update_4bit(((33,), (700,), (5000,)), torch.float32, name, **changed)
    call["g"][0][::3] = 0.0
    check(run_4bit, call)


@every_isa
@every_rule
def test_first_steps_from_nothing(name):
    call = update_4bit(((700,), (3,)), torch.float32, name)
    for state, absmax, _ in states_of(call):
        call[state] = [torch.zeros_like(codes) for codes in call[state]]
        call[absmax] = [torch.zeros_like(scales) for scales in call[absmax]]
    for step in (1, 2, 3, 4):
        call["step"] = [step] * 2
        call["g"] = [torch.randn_like(p) for p in call["p"]]
        check(run_4bit, call)


@every_isa
@every_rule
def test_the_bytes_are_those_of_the_reference(name):
    """The spare nibble of an odd size too; a value at a boundary may be either of two codes."""
    call = update_4bit(SHAPES, torch.float32, name)
    expected = copy.deepcopy(call)
    run_4bit(**call)
    reference.optimizer_update_4bit_blockwise(**expected)
    for state, _, _ in states_of(call):
        for codes, wanted in zip(call[state], expected[state], strict=True):
            assert (codes != wanted).sum() <= max(1, codes.numel() // 1000)


@every_isa
@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_harms_its_block_alone(bad, name):
    call = update_4bit(((500,),), torch.float32, name)
    expected = copy.deepcopy(call)
    run_4bit(**expected)
    call["g"][0][200] = bad
    run_4bit(**call)
    assert name == "lion" or not call["p"][0][200].isfinite()
    other = torch.arange(500) != 200
    same(call["p"][0][other], expected["p"][0][other])
    for state, absmax, qmap in states_of(call):
        pairs = zip(
            parts_of(call[state][0], call[absmax][0]),
            parts_of(expected[state][0], expected[absmax][0]),
            strict=True,
        )
        for part, wanted in pairs:
            values, others = (decoded(*x, call[qmap], 500) for x in (part, wanted))
            assert values[128:256].isnan().all()
            for place in (slice(128), slice(256, 500)):
                same(values[place], others[place])


@every_isa
@every_rule
@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_one_call_is_many_calls(limit, name):
    together = update_4bit((*SHAPES, (20_001,)), torch.float32, name, max_unorm=limit)
    alone = copy.deepcopy(together)
    run_4bit(**together)
    lists = [argument for argument in ("g", *WRITTEN, "step") if together[argument]]
    for i in range(len(SHAPES) + 1):
        run_4bit(**{**alone, **{argument: [alone[argument][i]] for argument in lists}})
    for argument in WRITTEN:
        same(alone[argument], together[argument])


@every_isa
def test_the_number_of_threads_changes_no_bit():
    call = update_4bit(((100_003,), (77,)), torch.bfloat16)
    alone = copy.deepcopy(call)
    threads = torch.get_num_threads()
    for arguments_, count in ((call, 3), (alone, 1)):
        torch.set_num_threads(count)
        run_4bit(**arguments_)
    torch.set_num_threads(threads)
    for argument in WRITTEN:
        same(alone[argument], call[argument])


@every_isa
@every_rule
def test_no_parameters(name):
    run_4bit(**update_4bit((), torch.float32, name))  # raises nothing


@every_isa
def test_a_map_out_of_order_is_refused():
    for qmap in ("qmap1", "qmap2"):
        code = arguments("optimizer_update_4bit_blockwise")[qmap]
        refuses("optimizer_update_4bit_blockwise", qmap, **{qmap: code.flip(0)})


def changed_entry(name, index, replace):
    """Return a change of one tensor of one list."""
    tensors = list(arguments("optimizer_update_4bit_blockwise")[name])
    tensors[index] = replace(tensors[index])
    return {name: tensors}


WRONG = [
    *((f"{name}[1]", changed_entry(name, 1, lambda t: t.to("meta"))) for name in LISTS[2:]),
    *((f"{name}[0]", changed_entry(name, 0, lambda t: t[:-1])) for name in LISTS[2:]),
    ("state1[1]", changed_entry("state1", 1, torch.Tensor.char)),
    ("state1[0]", changed_entry("state1", 0, lambda t: t.new_zeros(350))),  # one byte an element
    ("state2", {"optimizer_name": "lion"}),
    ("qmap2", {"optimizer_name": "lion", "state2": [], "absmax2": []}),
    ("qmap2", {"qmap2": None}),
    ("unorm_vec", {"max_unorm": 1.0}),
    *((qmap, {qmap: torch.zeros(256)}) for qmap in ("qmap1", "qmap2")),
    *((qmap, {qmap: torch.zeros(16, device="meta")}) for qmap in ("qmap1", "qmap2")),
]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("optimizer_update_4bit_blockwise", argument, **changed)
