"""Overrides of settings by parameter and by module."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

from bnbx.optim import SGD, Adam, Adam8bit, GlobalOptimManager


@pytest.fixture
def manager():
    manager = GlobalOptimManager.get_instance()
    manager.initialize()
    yield manager
    manager.initialize()


def step(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


def bits(optimizer, p):
    return {torch.uint8: 8, torch.float32: 32}[optimizer.state[p]["state1"].dtype]


def test_there_is_one_manager(manager):
    assert GlobalOptimManager.get_instance() is manager
    with pytest.raises(RuntimeError, match="get_instance"):
        GlobalOptimManager()


@pytest.mark.parametrize("order", ["before", "between", "after"])
def test_bits_are_overridden_whenever_it_is_done_before_the_first_step(manager, order, device):
    model = torch.nn.Linear(128, 128, device=device)
    other = torch.nn.Linear(128, 128, device=device)
    if order == "before":
        manager.override_config(model.weight, "optim_bits", 32)
    manager.register_parameters(model.parameters())
    if order == "between":
        manager.override_config(model.weight, "optim_bits", 32)
    optimizer = Adam8bit([model.weight, other.weight])
    if order == "after":
        manager.override_config([model.weight], key_value_dict={"optim_bits": 32})
    step(optimizer)
    assert bits(optimizer, model.weight) == 32
    assert bits(optimizer, other.weight) == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.5),
        ("lr", torch.tensor(0.5)),
        ("betas", (0.1, 0.2)),
        ("betas", "(0.1, 0.2)"),
        ("eps", 1.0),
        ("weight_decay", 0.5),
        ("skip_zeros", True),
        ("min_8bit_size", 10),
        ("optim_bits", 32),
    ],
)
@pytest.mark.parametrize("by_module", [False, True])
def test_every_setting_is_overridden(manager, key, value, by_module, device):
    def parameter():
        return torch.nn.Parameter(torch.linspace(-1, 1, 300, device=device))

    module = torch.nn.Module()
    module.weight = parameter()
    plain, expected = parameter(), parameter()
    if by_module:
        manager.register_module_override(module, "weight", {key: value})
    else:
        manager.override_config(module.weight, key, value)
    smallest = 301 if key == "min_8bit_size" else 0
    optimizer = Adam8bit([module.weight, plain], lr=0.1, min_8bit_size=smallest)
    group = {"params": [expected], "lr": 0.1, "min_8bit_size": smallest, key: value}
    reference = Adam8bit([group])
    for i in range(3):
        for p in (module.weight, plain, expected):
            p.grad = torch.linspace(-1, 2, 300, device=device) * (-1) ** i
            p.grad[i::3] = 0.0
        optimizer.step()
        reference.step()
    assert torch.equal(module.weight, expected)
    assert not torch.equal(module.weight, plain)


def test_overrides_add_up_and_are_not_shared(manager):
    p, q = (torch.nn.Parameter(torch.zeros(8)) for _ in range(2))
    config = {"lr": 0.5}
    manager.override_config([p, q], key_value_dict=config)
    manager.override_config(p, "eps", 1.0)
    assert config == {"lr": 0.5}
    assert manager.overrides() == {id(p): {"lr": 0.5, "eps": 1.0}, id(q): {"lr": 0.5}}


def test_learning_rate_can_be_overridden_between_steps(manager):
    p, q = (torch.nn.Parameter(torch.zeros(8)) for _ in range(2))
    optimizer = Adam([p, q], lr=0.1)
    step(optimizer)
    manager.override_config(p, "lr", 0.0)
    before = p.detach().clone()
    step(optimizer)
    assert torch.equal(p, before)
    assert not torch.equal(q, before)


def test_settings_that_name_a_beta_can_be_overridden(manager):
    p, q = (torch.nn.Parameter(torch.zeros(8)) for _ in range(2))
    manager.override_config(p, "momentum", 0.0)
    optimizer = SGD([p, q], lr=0.1, momentum=0.9)
    for _ in range(2):
        step(optimizer)
    assert torch.equal(optimizer.state[p]["state1"], p.grad)
    assert not torch.equal(optimizer.state[q]["state1"], q.grad)


def test_a_module_override_holds_for_a_parameter_put_in_later(manager):
    model = torch.nn.Linear(128, 128)
    manager.register_module_override(model, "weight", {"optim_bits": 32})
    old = model.weight
    model.weight = torch.nn.Parameter(torch.ones(128, 128))
    optimizer = Adam8bit([old, model.weight])
    step(optimizer)
    assert (bits(optimizer, old), bits(optimizer, model.weight)) == (8, 32)


def test_the_override_of_a_parameter_goes_before_that_of_its_module(manager):
    model = torch.nn.Linear(4, 4)
    manager.override_config(model.weight, "lr", 0.2)
    manager.register_module_override(model, "weight", {"lr": 0.1, "eps": 1.0})
    assert manager.overrides() == {id(model.weight): {"lr": 0.2, "eps": 1.0}}


def test_overrides_end_with_their_parameter(manager):
    for _ in range(50):  # a new parameter often gets the id of the one before
        p = torch.nn.Parameter(torch.zeros(8))
        assert manager.overrides() == {}
        manager.override_config(p, "lr", 0.5)
        assert list(manager.overrides()) == [id(p)]
        del p


def test_modules_are_not_kept_alive(manager):
    model = torch.nn.Linear(4, 4)
    alive = weakref.ref(model)
    manager.register_module_override(model, "weight", {"lr": 0.5})
    del model
    gc.collect()
    assert alive() is None
    assert manager.overrides() == {}
    other = torch.nn.Linear(4, 4)
    manager.register_module_override(other, "weight", {"lr": 0.5})
    assert list(manager.overrides()) == [id(other.weight)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_of_an_optimizer_keep_their_overrides(manager, copied):
    p, q = (torch.nn.Parameter(torch.zeros(8)) for _ in range(2))
    manager.override_config(p, "lr", 0.0)
    optimizer = copied(Adam([p, q], lr=0.1))
    step(optimizer)
    assert [float(x.detach().abs().sum()) > 0 for x in optimizer.param_groups[0]["params"]] == [
        False,
        True,
    ]


def test_what_is_no_setting_is_refused(manager):
    p = torch.nn.Parameter(torch.zeros(8))
    module = torch.nn.Linear(2, 2, bias=False)
    cases = [
        (lambda: manager.override_config(p, "optim_bit", 32), "^key: .*'optim_bit'"),
        (lambda: manager.override_config(p, "optim_bits", 16), "^optim_bits: "),
        (lambda: manager.override_config(p, "max_unorm", -1.0), "^max_unorm: "),
        (lambda: manager.override_config(p), "^key: "),
        (lambda: manager.override_config(p, "lr", 1.0, {"eps": 1.0}), "^key: "),
        (lambda: manager.override_config(p, key_value_dict={"x": 1}), "^key_value_dict: "),
        (lambda: manager.override_config([p, 3], "lr", 1.0), r"^parameters\[1\]: .*int"),
        (lambda: manager.register_parameters([p, "p"]), r"^params\[1\]"),
        (lambda: manager.register_parameters([{"params": [3]}]), r"^params\[0\]\['params'\]"),
        (lambda: manager.register_module_override(module, "bias", {}), "^param_name: "),
        (lambda: manager.register_module_override(module, "weight", {"a": 1}), "^config: "),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert manager.overrides() == {}
