"""Constructor arguments, args objects and groups: honoured or refused, whichever way they come."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bnbx.optim import Adam, Adam8bit, Adam32bit, AdamW8bit

from .families import EVERY_NAME, make

REFUSED = [
    ("lr", -1.0),
    ("lr", float("nan")),
    ("lr", "fast"),
    ("lr", torch.ones(2)),
    ("eps", -1e-8),
    ("eps", None),
    ("weight_decay", -0.1),
    ("betas", (0.9, 1.0)),
    ("betas", (-0.1, 0.9)),
    ("betas", (0.9,)),
    ("betas", (0.9, 0.99, 0.999)),
    ("betas", "0.9; 0.999"),
    ("betas", 0.9),
    ("optim_bits", 16),
    ("optim_bits", "8"),
    ("optim_bits", [8]),
    ("min_8bit_size", -1),
    ("skip_zeros", "no"),
    ("maximize", 1),
    ("max_unorm", -0.1),
    ("amsgrad", True),
    ("is_paged", "yes"),
    ("percentile_clipping", 0),
    ("percentile_clipping", 101),
    ("block_wise", False),
]


def parameter(numel=8):
    return torch.nn.Parameter(torch.zeros(numel))


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_arguments_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"^{key}: expected"):
        Adam([parameter()], **{key: value})


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_group_settings_are_refused_by_name(key, value):
    optimizer = Adam([parameter()])
    with pytest.raises(ValueError, match=rf"^param_groups\[1\]\.{key}: expected"):
        optimizer.add_param_group({"params": [parameter()], key: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim_bits", 16),
        ("max_unorm", -1.0),
        ("percentile_clipping", 5.0),
        ("block_wise", False),
        ("skip_zeros", 3),
    ],
)
def test_attributes_of_args_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"^args\.{key}: expected"):
        Adam([parameter()], args=SimpleNamespace(**{key: value}))


def test_refusals_say_what_is_supported():
    with pytest.raises(ValueError, match="False, the only value supported so far, got True"):
        Adam([parameter()], amsgrad=True)


def test_attributes_of_args_go_before_arguments():
    args = SimpleNamespace(optim_bits=8, min_8bit_size=4, max_unorm=0.0, skip_zeros=True)
    optimizer = Adam([parameter()], args=args)
    assert vars(args).items() <= vars(optimizer.args).items()
    optimizer.param_groups[0]["params"][0].grad = torch.ones(8)
    optimizer.step()
    assert (
        optimizer.state_dict()["state"][0]["__bnb_optimizer_quant_state__"]["qmap1"].numel() == 256
    )


def test_args_may_lack_attributes():
    assert Adam([parameter()], optim_bits=8, args=SimpleNamespace()).args.optim_bits == 8


@pytest.mark.parametrize("cls", [Adam8bit, Adam32bit, AdamW8bit])
def test_numbered_names_have_their_own_width_only(cls):
    own = 32 if cls is Adam32bit else 8
    for bits in (16, 40 - own):
        if bits != 32:  # the default in the signature
            with pytest.raises(ValueError, match=f"^optim_bits: .*{cls.__name__} fixes"):
                cls([parameter()], optim_bits=bits)
    assert cls([parameter()], optim_bits=own).args.optim_bits == own
    assert cls([parameter()], optim_bits=32).args.optim_bits == own


def test_args_cannot_be_a_dict():
    with pytest.raises(ValueError, match=r"^args: .*SimpleNamespace"):
        Adam([parameter()], args={"optim_bits": 8})


def test_arguments_of_old_programs_are_taken():
    optimizer = Adam8bit([parameter()], percentile_clipping=100, block_wise=True, is_paged=False)
    assert optimizer.args.optim_bits == 8
    assert optimizer.args.percentile_clipping == 100
    assert not optimizer.args.is_paged


@pytest.mark.parametrize("betas", ["(0.8, 0.99)", "0.8,0.99", " (0.8,0.99) ", [0.8, 0.99]])
def test_betas_may_be_a_string_or_a_list(betas):
    optimizer = Adam([parameter()], betas=betas)
    optimizer.add_param_group({"params": [parameter()], "betas": betas})
    for group in optimizer.param_groups:
        assert tuple(group["betas"]) == (0.8, 0.99)


def test_groups_have_their_own_bits_and_sizes():
    params = [parameter(512) for _ in range(5)]
    optimizer = Adam8bit(
        [
            {"params": params[:1]},
            {"params": params[1:2], "min_8bit_size": 512},
            {"params": params[2:3], "min_8bit_size": 0, "optim_bits": 32},
            {"params": params[3:4], "min_8bit_size": 513},
            {"params": params[4:], "min_8bit_size": 512, "optim_bits": 4},
        ]
    )
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    dtypes = [optimizer.state[p]["state1"].dtype for p in params]
    assert dtypes == [torch.float32, torch.uint8, torch.float32, torch.float32, torch.uint8]
    assert optimizer.state[params[4]]["state1"].shape == (256,)


#: Arguments of single families that cannot be honoured.
OTHERS = [
    ("SGD", "momentum", 1.0),
    ("SGD", "momentum", None),
    ("SGD", "dampening", -0.5),
    ("SGD", "nesterov", 1),
    ("SGD8bit", "momentum", 1.5),
    ("LARS", "max_unorm", -1.0),
    ("LARS8bit", "max_unorm", "much"),
    ("LARS", "momentum", 2),
    ("RMSprop", "alpha", 1.0),
    ("RMSprop", "momentum", 0.9),
    ("RMSprop8bit", "centered", True),
    ("Adagrad", "lr_decay", -1),
    ("Adagrad", "initial_accumulator_value", 0.1),
    ("Adagrad8bit", "lr", -1),
    ("LAMB", "bias_correction", False),
    ("LAMB", "adam_w_mode", False),
    ("LAMB8bit", "amsgrad", True),
    ("LAMB8bit", "max_unorm", -1),
    ("Lion", "betas", (0.9, 0.99, 0.999)),
    ("AdEMAMix", "betas", (0.9, 0.999)),
    ("AdEMAMix", "alpha", -1.0),
    ("AdEMAMix", "t_alpha", 0.5),
    ("AdEMAMix8bit", "t_beta3", -3),
    ("AdEMAMix", "optim_bits", 4),
    ("Adagrad", "optim_bits", 4),
]


@pytest.mark.parametrize(("name", "key", "value"), OTHERS)
def test_arguments_of_families_are_refused_by_name(name, key, value):
    with pytest.raises(ValueError, match=rf"^{key}: expected"):
        make(name, [parameter()], **{key: value})


@pytest.mark.parametrize("name", EVERY_NAME)
def test_unknown_arguments_are_refused_as_python_does(name):
    with pytest.raises(
        TypeError, match=r"__init__\(\)|\(\) got an unexpected keyword argument 'rl'"
    ):
        make(name, [parameter()], rl=1.0)


@pytest.mark.parametrize(
    ("name", "named", "betas"),
    [
        ("SGD", {"momentum": 0.5}, (0.5, 0.0)),
        ("LARS8bit", {"momentum": 0.5, "dampening": 0.1}, (0.5, 0.1)),
        ("SGD", {"dampening": 0.1}, (0.9, 0.1)),
        ("RMSprop", {"alpha": 0.5}, (0.5, 0.0)),
    ],
)
def test_groups_take_the_names_of_the_signature(name, named, betas):
    optimizer = make(name, [{"params": [parameter()], **named}])
    assert optimizer.param_groups[0]["betas"] == betas
    assert not named.keys() & optimizer.param_groups[0].keys()
    for key in named:
        with pytest.raises(ValueError, match=rf"^param_groups\[1\]\.{key}: expected"):
            optimizer.add_param_group({"params": [parameter()], key: 2.0})


def test_the_momentum_of_rmsprop_is_refused_in_groups_too():
    optimizer = make("RMSprop", [parameter()])
    with pytest.raises(ValueError, match=r"^param_groups\[1\]\.momentum: expected 0"):
        optimizer.add_param_group({"params": [parameter()], "momentum": 0.9})


def test_groups_have_their_own_nesterov_and_maximize():
    params = [parameter() for _ in range(3)]
    optimizer = make(
        "SGD",
        [
            {"params": params[:1]},
            {"params": params[1:2], "nesterov": True},
            {"params": params[2:], "maximize": True},
        ],
        lr=1.0,
    )
    for p in params:
        p.grad = torch.ones(8)
    optimizer.step()
    for p, moved in zip(params, (-1.0, -1.9, 1.0), strict=True):
        torch.testing.assert_close(p.detach(), torch.full((8,), moved))


def test_paged_states_without_kernels_for_their_device_are_refused():
    class Elsewhere(torch.nn.Parameter):
        device = torch.device("xpu")

    p = parameter()
    p.grad = torch.ones(8)
    optimizer = make("PagedLion", [p])
    p.__class__ = Elsewhere
    with pytest.raises(ValueError, match="^is_paged: expected False for parameters on xpu"):
        optimizer.step()
