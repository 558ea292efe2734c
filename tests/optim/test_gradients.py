"""Gradients of every kind, for every family: other dtypes, zeros, NaN, sparse, scaled, upwards."""

from __future__ import annotations

import math

import pytest
import torch

from .families import every_maker, parameters, set_gradients, states_of

SHAPES = [(), (255,), (257,), (20, 30)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def twins(cls, device, dtype=torch.float32, **settings):
    """Return two optimizers of equal parameters, the second with other settings too."""
    ours = parameters(SHAPES, dtype, device)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    common = {"lr": 0.1, "weight_decay": 0.1, "min_8bit_size": 0}
    return cls(ours, **common), cls(theirs, **common, **settings)


def pairs(*optimizers):
    return list(zip(*(o.param_groups[0]["params"] for o in optimizers), strict=True))


@every_maker
@pytest.mark.parametrize("gradient", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_of_another_dtype_counts_as_its_values(cls, dtype, gradient, device):
    optimizer, other = twins(cls, device, dtype)
    for _ in range(3):
        for p, q in pairs(optimizer, other):
            p.grad_dtype, q.grad_dtype = gradient, torch.float32
            p.grad = torch.randn(p.shape, device=device).to(gradient)
            q.grad = p.grad.float()
        optimizer.step()
        other.step()
    for p, q in pairs(optimizer, other):
        assert p.dtype == dtype
        assert torch.equal(p, q)
        for kept, expected in zip(
            states_of(optimizer.state[p], p.shape), states_of(other.state[q], q.shape), strict=True
        ):
            assert torch.equal(kept, expected)


@every_maker
@pytest.mark.parametrize("dtype", DTYPES)
def test_maximize_goes_up_the_gradient(cls, dtype, device):
    """Where decay is added to the gradient, it is added after the gradient is turned round."""
    optimizer, other = twins(cls, device, dtype, maximize=True)
    for _ in range(3):
        for p, q in pairs(optimizer, other):
            p.grad = torch.randn(p.shape, device=device).to(dtype)
            q.grad = -p.grad
        optimizer.step()
        other.step()
    for p, q in pairs(optimizer, other):
        assert torch.equal(p, q)


@every_maker
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_gradients_of_zeros_move_nothing_but_decay(cls, decay, device):
    params = parameters(SHAPES, device=device)
    before = [p.detach().clone() for p in params]
    optimizer = cls(params, lr=0.1, weight_decay=decay, min_8bit_size=0)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p, old in zip(params, before, strict=True):
        if decay:
            assert (p.abs() <= old.abs() + 0.5).all()  # Adagrad and RMSprop take steps of about lr
            assert not torch.equal(p, old)
        else:
            assert torch.equal(p, old)
        for values in states_of(optimizer.state[p], p.shape):
            assert values.isfinite().all()
            assert decay or not values.any()


@every_maker
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_block(cls, bad, device):
    """Nothing else of the parameter, its states, or the parameters beside it knows of it later."""
    (p,) = parameters([(1024,)], device=device)
    (q,) = parameters([(1024,)], device=device)
    q.data.copy_(p)
    optimizer, other = (cls([x], lr=0.01, min_8bit_size=0, max_unorm=0.0) for x in (p, q))
    for step in range(4):
        set_gradients([p])
        q.grad = p.grad.clone()
        if step == 1:
            p.grad[300] = bad
        optimizer.step()
        other.step()
    clean = torch.ones(1024, dtype=torch.bool, device=device)
    clean[256:512] = False
    assert torch.equal(p[clean], q[clean])
    for kept, expected in zip(
        states_of(optimizer.state[p], p.shape), states_of(other.state[q], q.shape), strict=True
    ):
        assert torch.equal(kept[..., clean], expected[..., clean])
        assert kept[..., clean].isfinite().all()
        assert not kept[..., ~clean].isfinite().all()


@every_maker
def test_sparse_gradients_are_refused_and_change_nothing(cls, device):
    params = parameters([(300,), (30, 20)], device=device)
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.ones(300, device=device)
    params[1].grad = torch.ones(30, 20, device=device).to_sparse()
    optimizer = cls(params, min_8bit_size=0)
    with pytest.raises(ValueError, match=r"\['params'\]\[1\]\.grad: expected a dense gradient"):
        optimizer.step()
    for p, old in zip(params, before, strict=True):
        assert torch.equal(p, old)
    params[1].grad = torch.ones(30, 20, device=device)
    optimizer.step()
    assert not torch.equal(params[1], before[1])


@every_maker
def test_scaled_gradients(cls, device):
    """A step with an overflow is left out, and the scale of the others does not matter."""
    optimizer, other = twins(cls, device)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    scales = set()
    for step in range(4):
        optimizer.zero_grad()
        factors = [torch.randn(p.shape, device=device) for p, _ in pairs(optimizer, other)]
        loss = sum(
            (p * f).sum() for (p, _), f in zip(pairs(optimizer, other), factors, strict=True)
        )
        scaler.scale(loss).backward()
        if step == 1:
            optimizer.param_groups[0]["params"][1].grad[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        scales.add(scaler.get_scale())
        if step != 1:
            for (_, q), factor in zip(pairs(optimizer, other), factors, strict=True):
                q.grad = factor
            other.step()
    assert len(scales) == 2
    for p, q in pairs(optimizer, other):
        assert torch.equal(p, q)
        assert optimizer.state[p]["step"] == 3
