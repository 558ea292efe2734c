"""The trajectories of Adam and AdamW: against torch, against naive oracles, and a training run."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from bnbx import optim
from bnbx.codebooks import create_dynamic_map

SHAPES = [(), (1,), (255,), (256,), (257,), (3, 5, 7), (64, 65), (16, 300), (0,), (4, 0)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CLASSES = [getattr(optim, f"Adam{w}{bits}") for w in ("", "W") for bits in ("", "8bit", "32bit")]


def oracle_adam(p, g, m, v, step, lr, betas, eps, weight_decay):
    """Loshchilov & Hutter 2019, algorithm 2, line by line in float32."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return p - lr * weight_decay * p - lr * m_hat / (v_hat.sqrt() + eps), m, v


def oracle_dequantize(codes, absmax, qmap):
    return torch.stack(
        [qmap[code] * absmax[i // 256] for i, code in enumerate(codes.flatten().tolist())]
    ).view(codes.shape)


def oracle_nearest(values, qmap):
    """Each value replaced by the nearest that its block of 256 can hold."""
    blocks = [b / b.abs().max().clamp(min=1e-38) for b in values.flatten().split(256)]
    scales = [b.abs().max() for b in values.flatten().split(256)]
    nearest = [qmap[(b[:, None] - qmap).abs().argmin(1)] for b in blocks]
    return torch.cat([n * s for n, s in zip(nearest, scales, strict=True)]).view(values.shape)


def parameters(device, dtype=torch.float32, shapes=SHAPES):
    return [torch.nn.Parameter(torch.randn(s, device=device).to(dtype)) for s in shapes]


def set_gradients(params):
    for p in params:
        p.grad = (torch.randn(p.shape, device=p.device) * 10 ** torch.randn(())).to(p.dtype)


@pytest.mark.parametrize("cls", [optim.Adam, optim.Adam32bit, optim.AdamW, optim.AdamW32bit])
@pytest.mark.parametrize(
    "settings", [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}]
)
def test_32bit_follows_torch(cls, settings, device):
    ours = parameters(device)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = cls(ours, **settings)
    settings = {"weight_decay": optimizer.defaults["weight_decay"], **settings}
    reference = torch.optim.AdamW(theirs, **settings)
    for _ in range(20):
        set_gradients(ours)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_32bit_follows_the_oracle(dtype, weight_decay, device):
    p = parameters(device, dtype, [(300,)])[0]
    optimizer = optim.Adam32bit([p], lr=1e-2, weight_decay=weight_decay)
    m, v = torch.zeros(2, 300, device=device)
    for step in range(1, 6):
        set_gradients([p])
        before = p.detach().clone().float()
        optimizer.step()
        expected, m, v = oracle_adam(
            before, p.grad.float(), m, v, step, 1e-2, (0.9, 0.999), 1e-8, weight_decay
        )
        torch.testing.assert_close(p.detach(), expected.to(dtype))
        torch.testing.assert_close(optimizer.state[p]["state1"], m)
        torch.testing.assert_close(optimizer.state[p]["state2"], v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", [optim.Adam8bit, optim.AdamW8bit])
@pytest.mark.parametrize("shape", [(1,), (255,), (256,), (257,), (3, 5, 7), (600,)])
def test_8bit_follows_the_oracle(dtype, cls, shape, device):
    p = parameters(device, dtype, [shape])[0]
    optimizer = cls([p], lr=1e-2, min_8bit_size=0)
    decay = optimizer.defaults["weight_decay"]
    maps = [create_dynamic_map(signed).to(device) for signed in (True, False)]
    moments = [torch.zeros(shape, device=device), torch.zeros(shape, device=device)]
    for step in range(1, 5):
        set_gradients([p])
        before = p.detach().clone().float()
        optimizer.step()
        expected, *moments = oracle_adam(
            before, p.grad.float(), *moments, step, 1e-2, (0.9, 0.999), 1e-8, decay
        )
        torch.testing.assert_close(p.detach(), expected.to(dtype))
        state = optimizer.state[p]
        for i, qmap in enumerate(maps):
            kept = oracle_dequantize(state[f"state{i + 1}"], state[f"absmax{i + 1}"], qmap)
            best = oracle_nearest(moments[i], qmap)
            slack = 1e-6 * moments[i].abs().max()  # two entries may be equally near
            assert ((kept - moments[i]).abs() <= (best - moments[i]).abs() + slack).all()
            moments[i] = kept


@pytest.mark.parametrize("cls", CLASSES)
def test_every_shape_and_dtype_is_updated(cls, device):
    params = [p for dtype in DTYPES for p in parameters(device, dtype)]
    before = [p.detach().clone() for p in params]
    optimizer = cls(params, lr=0.5, min_8bit_size=1)
    set_gradients(params)
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        assert p.dtype == old.dtype
        assert p.shape == old.shape
        assert p.isfinite().all()
        assert p.numel() == 0 or (p != old).any()


@pytest.mark.parametrize("bits", [8, 32])
def test_skip_zeros_leaves_entries_without_gradient_alone(bits, device):
    p = torch.nn.Parameter(torch.randn(512, device=device))
    optimizer = optim.Adam(
        [p], lr=0.1, weight_decay=0.1, optim_bits=bits, min_8bit_size=0, skip_zeros=True
    )
    before = p.detach().clone()
    p.grad = torch.randn(512, device=device)
    p.grad[::2] = 0.0
    optimizer.step()
    assert torch.equal(p[::2], before[::2])
    assert (p[1::2] != before[1::2]).all()


def test_signatures_begin_as_users_know_them():
    names = [
        *("params", "lr", "betas", "eps", "weight_decay", "amsgrad", "optim_bits", "args"),
        *("min_8bit_size", "is_paged"),
    ]
    for cls in CLASSES:
        assert list(inspect.signature(cls).parameters)[:10] == names


@pytest.mark.parametrize("cls", CLASSES)
def test_names_are_documented_classes_of_the_package(cls):
    assert cls.__doc__
    assert getattr(optim, cls.__name__) is cls
    decay = 1e-2 if "W" in cls.__name__ else 0.0
    optimizer = cls([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["weight_decay"] == decay
    assert optimizer.args.optim_bits == (8 if "8bit" in cls.__name__ else 32)


def test_8bit_training_follows_32bit_training(device):
    x = torch.randn(512, 32, device=device)
    target = torch.sin(x @ torch.randn(32, 4, device=device))

    def losses(cls):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 4)
        ).to(device)
        optimizer = cls(model.parameters(), lr=1e-2, min_8bit_size=256)
        values = []
        for _ in range(80):
            loss = torch.nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    quantized, full = losses(optim.Adam8bit), losses(optim.Adam32bit)
    assert full[-1] < 0.5 * full[0]
    assert all(math.isclose(a, b, rel_tol=0.1) for a, b in zip(quantized, full, strict=True))
