"""Bases of other people's optimizers, which update one parameter after the other."""

from __future__ import annotations

import pytest
import torch

from bnbx import optim
from bnbx.compat.old_optimizers import Optimizer1State, Optimizer2State


class Projected(Optimizer2State):
    """As GaLore does it: the update of a projected gradient, in a step of its own."""

    def __init__(self, params, optim_bits=8):
        super().__init__("adam", params, 1e-2, (0.9, 0.999), 1e-8, 0.01, optim_bits, None, 16)

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002 (a trainer passes it)
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for gindex, group in enumerate(self.param_groups):
            for pindex, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                state = self.state[p]
                if "step" not in state:
                    state["step"] = 0
                state["projector"] = "kept"
                p.grad = p.grad * group["scale"]
                if "state1" not in state:
                    self.init_state(group, p, gindex, pindex)
                self.prefetch_state(p)
                self.update_step(group, p, gindex, pindex)


def parameters():
    torch.manual_seed(3)
    return [torch.nn.Parameter(torch.randn(40, 16)) for _ in range(3)]


def train(optimizer, params, scale):
    for step in range(3):
        torch.manual_seed(step)
        for p in params[:2]:
            p.grad = torch.randn_like(p) * scale
        optimizer.step()
    return params


@pytest.mark.parametrize("bits", [8, 32])
def test_a_step_of_its_own(bits):
    mine = parameters()
    optimizer = Projected([{"params": mine, "scale": 2.0, "rank": 4}], bits)
    train(optimizer, mine, 1.0)
    same = parameters()
    expected = optim.AdamW(same, 1e-2, weight_decay=0.01, optim_bits=bits, min_8bit_size=16)
    train(expected, same, 2.0)
    assert all(map(torch.equal, mine, same))
    state = optimizer.state[mine[0]]
    assert state["projector"] == "kept"
    assert state["step"] == 3
    assert state["state1"].dtype == (torch.uint8 if bits == 8 else torch.float32)
    assert mine[2] not in optimizer.state


def test_an_override_is_seen():
    params = parameters()
    optimizer = Projected([{"params": params, "scale": 1.0}])
    manager = optim.GlobalOptimManager.get_instance()
    manager.override_config(params[0], "optim_bits", 32)
    assert optimizer.get_config(0, 0, optimizer.param_groups[0])["optim_bits"] == 32
    train(optimizer, params, 1.0)
    kinds = [optimizer.state[p]["state1"].dtype for p in params[:2]]
    assert kinds == [torch.float32, torch.uint8]
    manager.initialize()


@pytest.mark.parametrize(
    ("name", "betas", "eps", "expected"),
    [
        ("lion", (0.9, 0.99), 1e-8, lambda p: optim.Lion(p, 1e-3)),
        ("momentum", (0.9, 0.0), 1e-8, lambda p: optim.SGD(p, 1e-3, momentum=0.9)),
        ("adagrad", (0.9, 0.0), 1e-10, lambda p: optim.Adagrad(p, 1e-3)),
    ],
)
def test_rules_by_name(name, betas, eps, expected):
    mine, same = parameters(), parameters()
    train(Optimizer1State(name, mine, 1e-3, betas, eps), mine, 1.0)
    train(expected(same), same, 1.0)
    assert all(map(torch.equal, mine, same))


def test_saved_and_loaded():
    params, again = parameters(), parameters()
    optimizer = Projected([{"params": params, "scale": 1.0}])
    train(optimizer, params, 1.0)
    other = Projected([{"params": again, "scale": 1.0}])
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, again, strict=True):
        q.data.copy_(p.data)
    assert all(map(torch.equal, train(optimizer, params, 1.0), train(other, again, 1.0)))


@pytest.mark.parametrize(("base", "name"), [(Optimizer1State, "adam"), (Optimizer2State, "lion")])
def test_a_rule_of_the_other_base_is_refused(base, name):
    with pytest.raises(ValueError, match="optimizer_name: expected one of"):
        base(name, parameters())


def test_an_update_without_a_gradient_is_refused():
    params = parameters()
    optimizer = Optimizer1State("lion", params)
    assert not optimizer.is_paged
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['params'\]\[0\].grad: expected"):
        optimizer.update_step(optimizer.param_groups[0], params[0], 0, 0)
