"""optimizer_update_8bit_blockwise: decode the states, update, encode them again, block by block."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnbx.backends import reference
from bnbx.ops import OPTIMIZERS, RULES

from .checks import DTYPES, assert_nearest, close, every_isa, per_element, refuses, run, same
from .samples import arguments, update_8bit

SHAPES = ((), (0,), (1,), (7,), (3, 5, 7), (255,), (256,), (257,), (4500,))
LISTS = ("g", "p", "state1", "state2", "absmax1", "absmax2")
WRITTEN = (*LISTS[1:], "unorm_vec")
every_rule = pytest.mark.parametrize("name", RULES)


def run_8bit(**call):
    return run("optimizer_update_8bit_blockwise", **call)


def states_of(call):
    """Return the names of codes, scales and map of each state."""
    return [(f"state{i}", f"absmax{i}", f"qmap{i}") for i in (1, 2) if call[f"state{i}"]]


def parts_of(codes, scales, p):
    """Return codes and scales of each value that a state stacks, flat."""
    stacked = 2 if codes.dim() > p.dim() else 1
    return zip(
        codes.flatten().view(stacked, -1) if p.numel() else codes.view(stacked, 0),
        scales.view(stacked, scales.numel() // stacked),
        strict=True,
    )


def as_32bit(call):
    """Return the same update with the states that the codes mean."""
    wide = {name: value for name, value in call.items() if name[:-1] not in {"absmax", "qmap"}}
    for state, absmax, qmap in states_of(call):
        wide[state] = []
        for codes, scales, p in zip(call[state], call[absmax], call["p"], strict=True):
            values = [
                call[qmap][part.int()] * per_element(absmaxes, 256, part.numel())
                for part, absmaxes in parts_of(codes, scales, p)
            ]
            wide[state].append(torch.cat(values).view(codes.shape))
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
            parts = parts_of(call[state][i], call[absmax][i], p)
            news = wide[state][i].view(-1, *p.shape) if p.numel() else [p.float()] * 2
            for (codes, scales), new in zip(parts, news, strict=False):
                blocks = new.flatten().split(256) if new.numel() else ()
                expected = torch.tensor([block.abs().max() for block in blocks])
                close(scales, expected.double(), 8 * eps * expected.double())
                assert_nearest(call[qmap][codes.int()], new, scales, call[qmap], 256)
    for found, wanted in zip(call["unorm_vec"], wide["unorm_vec"], strict=True):
        close(found, wanted.double(), 1e-5 * wanted.double())


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule(name, dtype):
    for g_dtype in DTYPES if name == "adam" else (dtype,):
        call = update_8bit(SHAPES, dtype, name)
        call["g"] = [g.to(g_dtype) for g in call["g"]]
        check(run_8bit, call)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reference(name):
    for dtype in DTYPES:
        check(reference.optimizer_update_8bit_blockwise, update_8bit(SHAPES, dtype, name))


@every_isa
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
def test_hyperparameters(changed, name):
    call = update_8bit(((33,), (700,), (5000,)), torch.float32, name, **changed)
    call["g"][0][::3] = 0.0
    check(run_8bit, call)


@every_isa
@every_rule
def test_first_steps_from_nothing(name):
    call = update_8bit(((700,), (3,)), torch.float32, name)
    for state, absmax, _ in states_of(call):
        call[state] = [torch.zeros_like(codes) for codes in call[state]]
        call[absmax] = [torch.zeros_like(scales) for scales in call[absmax]]
    for step in (1, 2, 3, 4):
        call["step"] = [step] * 2
        call["g"] = [torch.randn_like(p) for p in call["p"]]
        check(run_8bit, call)


@every_isa
@every_rule
def test_skipped_elements_keep_their_parameter(name):
    call = update_8bit(((300,),), torch.float32, name, skip_zeros=True)
    call["g"][0].zero_()
    before = copy.deepcopy(call)
    run_8bit(**call)
    same(call["p"], before["p"])


@every_isa
@every_rule
@pytest.mark.parametrize("limit", [0.0, 1e6])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_harms_its_block_alone(bad, limit, name):
    call = update_8bit(((700,),), torch.float32, name, max_unorm=limit)
    expected = copy.deepcopy(call)
    run_8bit(**expected)
    call["g"][0][300] = bad
    run_8bit(**call)
    assert name == "lion" or not call["p"][0][300].isfinite()
    if math.isnan(bad) or limit == 0.0:  # an infinite update is shortened, and all of it
        other = torch.arange(700) != 300
        same(call["p"][0][other], expected["p"][0][other])
    for state, absmax, _ in states_of(call):
        assert call[absmax][0][..., 1].isnan().all()
        for place in (slice(256), slice(512, 700)):
            same(call[state][0][..., place], expected[state][0][..., place])


@every_isa
@every_rule
def test_strides_of_a_gradient_do_not_matter(name):
    call = update_8bit(((33, 47),), torch.float32, name)
    other = copy.deepcopy(call)
    other["g"] = [other["g"][0].t().contiguous().t()]
    run_8bit(**call)
    run_8bit(**other)
    for argument in WRITTEN:
        same(other[argument], call[argument])


@every_isa
@every_rule
def test_no_parameters(name):
    run_8bit(**update_8bit((), torch.float32, name))  # raises nothing


@every_isa
@every_rule
@pytest.mark.parametrize("limit", [0.0, 0.1])
def test_one_call_is_many_calls(limit, name):
    together = update_8bit((*SHAPES, (20_001,)), torch.float32, name, max_unorm=limit)
    alone = copy.deepcopy(together)
    run_8bit(**together)
    lists = [argument for argument in ("g", *WRITTEN, "step") if together[argument]]
    for i in range(len(SHAPES) + 1):
        run_8bit(**{**alone, **{argument: [alone[argument][i]] for argument in lists}})
    for argument in WRITTEN:
        same(alone[argument], together[argument])


@every_isa
def test_a_codebook_out_of_order_is_refused():
    for qmap in ("qmap1", "qmap2"):
        code = arguments("optimizer_update_8bit_blockwise")[qmap]
        refuses("optimizer_update_8bit_blockwise", qmap, **{qmap: code.flip(0)})


def changed_entry(name, index, replace):
    """Return a change of one tensor of one list."""
    tensors = list(arguments("optimizer_update_8bit_blockwise")[name])
    tensors[index] = replace(tensors[index])
    return {name: tensors}


def stretched(tensor):
    return tensor.new_zeros((*tensor.shape, 2))[..., 0]


WRONG = [
    ("optimizer_name", {"optimizer_name": "Adam"}),
    *((name, {name: []}) for name in (*LISTS, "step") if name != "p"),
    ("step[0]", {"step": [-1, 1]}),
    *((f"{name}[1]", changed_entry(name, 1, torch.Tensor.double)) for name in LISTS),
    *((f"{name}[1]", changed_entry(name, 1, lambda t: t.to("meta"))) for name in LISTS[2:]),
    *(
        (f"{name}[1]", changed_entry(name, 1, lambda t: t.new_zeros(9)))
        for name in LISTS
        if name != "p"
    ),
    *((f"{name}[0]", changed_entry(name, 0, stretched)) for name in LISTS[1:]),
    ("state1[1]", changed_entry("state1", 1, torch.Tensor.char)),
    ("absmax1[1]", changed_entry("absmax1", 1, torch.Tensor.half)),
]
WRONG += [
    ("state2", {"optimizer_name": "lion"}),
    ("absmax2", {"optimizer_name": "lion", "state2": []}),
    ("qmap2", {"optimizer_name": "lion", "state2": [], "absmax2": []}),
    ("qmap2", {"qmap2": None}),
    ("unorm_vec", {"max_unorm": 1.0}),
]
for qmap in ("qmap1", "qmap2"):
    WRONG += [
        (qmap, {qmap: torch.zeros(16)}),
        (qmap, {qmap: torch.zeros(256, dtype=torch.float64)}),
        (qmap, {qmap: torch.zeros(256, device="meta")}),
    ]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("optimizer_update_8bit_blockwise", argument, **changed)
