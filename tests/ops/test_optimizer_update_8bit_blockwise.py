"""optimizer_update_8bit_blockwise: decode the states, update, encode them again, block by block."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bnbx.backends import reference

from .checks import DTYPES, assert_nearest, close, every_isa, per_element, refuses, run, same
from .samples import arguments, update_8bit

SHAPES = ((), (0,), (1,), (7,), (3, 5, 7), (255,), (256,), (257,), (4500,))
LISTS = ("g", "p", "state1", "state2", "absmax1", "absmax2")
STATES = (("state1", "absmax1", "qmap1"), ("state2", "absmax2", "qmap2"))


def run_8bit(**call):
    return run("optimizer_update_8bit_blockwise", **call)


def as_32bit(call):
    """Return the same update with the states that the codes mean."""
    wide = {name: value for name, value in call.items() if name[:-1] not in {"absmax", "qmap"}}
    for state, absmax, qmap in STATES:
        wide[state] = [
            (call[qmap][codes.flatten().int()] * per_element(scales, 256, codes.numel())).view(
                codes.shape
            )
            for codes, scales in zip(call[state], call[absmax], strict=True)
        ]
    wide["p"] = [p.clone() for p in call["p"]]
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
        close(call["p"][i], p.double(), 8 * eps + p.double().abs() * torch.finfo(p.dtype).eps)
        for state, absmax, qmap in STATES:
            codes, new = call[state][i].flatten(), wide[state][i]
            blocks = new.flatten().split(256) if new.numel() else ()
            expected = torch.tensor([block.abs().max() for block in blocks])
            close(call[absmax][i], expected.double(), 8 * eps * expected.double())
            assert_nearest(call[qmap][codes.int()], new, call[absmax][i], call[qmap], 256)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam(dtype):
    for g_dtype in DTYPES:
        call = update_8bit(SHAPES, dtype)
        call["g"] = [g.to(g_dtype) for g in call["g"]]
        check(run_8bit, call)


def test_reference():
    for dtype in DTYPES:
        check(reference.optimizer_update_8bit_blockwise, update_8bit(SHAPES, dtype))


@every_isa
@pytest.mark.parametrize(
    "changed",
    [
        {"lr": 0.0},
        {"beta1": 0.0, "beta2": 0.0},
        {"eps": 0.1},
        {"weight_decay": 0.0},
        {"gnorm_scale": 0.25},
        {"skip_zeros": True},
    ],
    ids=str,
)
def test_hyperparameters(changed):
    call = update_8bit(((33,), (700,)), torch.float32, **changed)
    call["g"][0][::3] = 0.0
    check(run_8bit, call)


@every_isa
def test_first_steps_from_nothing():
    call = update_8bit(((700,), (3,)), torch.float32)
    for state, absmax, qmap in STATES:
        zero = int((call[qmap] == 0.0).nonzero()[0])
        call[state] = [torch.full_like(codes, zero) for codes in call[state]]
        call[absmax] = [torch.zeros_like(scales) for scales in call[absmax]]
    for step in (1, 2, 3, 4):
        call["step"] = [step] * 2
        call["g"] = [torch.randn_like(p) for p in call["p"]]
        check(run_8bit, call)


@every_isa
def test_skipped_elements_keep_their_parameter():
    call = update_8bit(((300,),), torch.float32, skip_zeros=True)
    call["g"][0].zero_()
    before = copy.deepcopy(call)
    run_8bit(**call)
    same(call["p"], before["p"])


@every_isa
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_harms_its_block_alone(bad):
    call = update_8bit(((700,),), torch.float32)
    expected = copy.deepcopy(call)
    run_8bit(**expected)
    call["g"][0][300] = bad
    run_8bit(**call)
    assert call["p"][0][300].isnan()
    assert call["absmax1"][0][1].isnan()
    assert call["absmax2"][0][1].isnan()
    same(call["p"][0][torch.arange(700) != 300], expected["p"][0][torch.arange(700) != 300])
    for place in (slice(256), slice(512, 700)):
        same(call["state1"][0][place], expected["state1"][0][place])
        same(call["state2"][0][place], expected["state2"][0][place])


@every_isa
def test_strides_of_a_gradient_do_not_matter():
    call = update_8bit(((33, 47),), torch.float32)
    other = copy.deepcopy(call)
    other["g"] = [other["g"][0].t().contiguous().t()]
    run_8bit(**call)
    run_8bit(**other)
    for name in LISTS:
        same(other[name], call[name])


@every_isa
def test_no_parameters():
    run_8bit(**update_8bit((), torch.float32))  # raises nothing


@every_isa
def test_one_call_is_many_calls():
    together = update_8bit((*SHAPES, (20_001,)), torch.float32)
    alone = copy.deepcopy(together)
    run_8bit(**together)
    for i in range(len(SHAPES) + 1):
        run_8bit(**{**alone, **{name: [alone[name][i]] for name in (*LISTS, "step")}})
    for name in LISTS:
        same(alone[name], together[name])


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
for qmap in ("qmap1", "qmap2"):
    WRONG += [
        (qmap, {qmap: torch.zeros(16)}),
        (qmap, {qmap: torch.zeros(256, dtype=torch.float64)}),
        (qmap, {qmap: torch.zeros(256, device="meta")}),
    ]


@pytest.mark.parametrize(("argument", "changed"), WRONG)
def test_refuses(argument, changed):
    refuses("optimizer_update_8bit_blockwise", argument, **changed)
