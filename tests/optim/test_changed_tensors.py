"""Tensors that change between two steps: each step checks again all that a kernel will touch."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from bnbx.optim import AdamW

every_bits = pytest.mark.parametrize("bits", [32, 8, 4])


def stepped(bits):
    """Return two parameters and their optimizer after a step; the second one is to be changed."""
    params = [torch.nn.Parameter(torch.randn(700)) for _ in range(2)]
    for p in params:
        p.grad = torch.randn(700)
    optimizer = AdamW(params, optim_bits=bits, min_8bit_size=0)
    optimizer.step()
    return optimizer, params


def refuses(optimizer, p, where):
    """Assert that a step is refused with where it went wrong, and leaves the other parameter."""
    before = p.detach().clone(), copy.deepcopy(optimizer.state[p])
    with pytest.raises(ValueError, match=rf"^{re.escape(where)}: expected .*, got "):
        optimizer.step()
    assert torch.equal(p, before[0])
    state = optimizer.state[p]
    assert state["step"] == before[1]["step"]
    assert torch.equal(state["state1"], before[1]["state1"])


def shrunk(tensor, nbytes):
    tensor.untyped_storage().resize_(nbytes)


@every_bits
@pytest.mark.parametrize("nbytes", [0, 8, 2799])
def test_a_parameter_whose_storage_shrank(bits, nbytes):
    optimizer, (p, q) = stepped(bits)
    shrunk(q, nbytes)
    refuses(optimizer, p, "p[1]")


@every_bits
def test_a_view_whose_storage_shrank_to_its_size(bits):
    whole = torch.randn(1400)
    p, q = (torch.nn.Parameter(part) for part in (torch.randn(700), whole[700:]))
    p.grad, q.grad = torch.randn(700), torch.randn(700)
    optimizer = AdamW([p, q], optim_bits=bits, min_8bit_size=0)
    optimizer.step()
    shrunk(whole, 2800)
    refuses(optimizer, p, "p[1]")


@every_bits
@pytest.mark.parametrize("what", ["g", "state1", "state2"])
def test_memory_that_was_freed(bits, what):
    optimizer, (p, q) = stepped(bits)
    shrunk(q.grad if what == "g" else optimizer.state[q][what], 0)
    refuses(optimizer, p, f"{what}[1]")


@every_bits
def test_a_parameter_of_another_dtype(bits):
    optimizer, (p, q) = stepped(bits)
    q.grad = None
    q.data = q.data.double()
    q.grad = torch.randn(700).double()
    refuses(optimizer, p, "p[1]")


@every_bits
def test_a_parameter_of_another_size(bits):
    optimizer, (p, q) = stepped(bits)
    q.grad = None
    q.data = q.data[:600]
    q.grad = torch.randn(600)
    refuses(optimizer, p, "state1[1]")


@every_bits
def test_a_parameter_that_lies_elsewhere_is_updated_there(bits):
    optimizer, (p, q) = stepped(bits)
    others = copy.deepcopy((optimizer.state_dict(), p.grad, q.grad))
    old = q.detach()
    kept = old.clone()
    q.data = old.clone()
    optimizer.step()
    assert torch.equal(old, kept)
    alone = torch.nn.Parameter(kept.clone())
    alone.grad = others[2]
    again = AdamW([torch.nn.Parameter(p.detach().clone()), alone], optim_bits=bits, min_8bit_size=0)
    again.load_state_dict(others[0])
    again.step()
    assert torch.equal(q, alone)


@every_bits
@pytest.mark.parametrize("name", ["state1", "state2"])
@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.double,
        lambda t: t.view(torch.int8 if t.dtype == torch.uint8 else torch.int32),
        lambda t: t[:-1],
        lambda t: torch.stack([t, t], dim=-1)[..., 0],
        lambda t: t.to("meta"),
        lambda t: t.resize_(100),
    ],
)
def test_a_state_that_was_replaced(bits, name, change):
    optimizer, (p, q) = stepped(bits)
    optimizer.state[q][name] = change(optimizer.state[q][name])
    refuses(optimizer, p, f"{name}[1]")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("change", [torch.Tensor.half, lambda t: t[:-1], lambda t: t.repeat(2)])
def test_scales_that_were_replaced(bits, change):
    optimizer, (p, q) = stepped(bits)
    optimizer.state[q]["absmax2"] = change(optimizer.state[q]["absmax2"])
    refuses(optimizer, p, "absmax2[1]")
