"""The single-tensor updates against Adam written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bnbx import functional as F

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CONSTANTS = {"beta1": 0.9, "eps": 1e-8, "lr": 1e-2, "weight_decay": 0.1}


def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    m = 0.9 * m + 0.1 * g
    v = 0.99 * v + 0.01 * g * g
    update = m / (1 - 0.9**step) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
    return p * (1 - 1e-2 * 0.1) - 1e-2 * update, m, v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 300), (0,)])
def test_32bit(dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    p = torch.randn(shape, device=device).to(dtype)
    m, v = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    expected = (p.double(), m.double(), v.double())
    for step in (1, 2, 3):
        g = torch.randn(shape, device=device).to(dtype)
        expected = adam(expected[0], g.double() * 0.5, *expected[1:], step)
        F.optimizer_update_32bit(
            "adam", g, p, m, step=step, state2=v, beta2=0.99, gnorm_scale=0.5, **CONSTANTS
        )
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(p.double(), expected[0], rtol=2 * eps, atol=1e-6)
        torch.testing.assert_close(m.double(), expected[1], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(v.double(), expected[2], rtol=1e-5, atol=1e-7)
        expected = (p.double(), *expected[1:])


def state_8bit(shape: tuple[int, ...], device: str) -> dict[str, Any]:
    blocks = -(-torch.Size(shape).numel() // 256)
    return {
        "state1": torch.full(shape, 127, dtype=torch.uint8, device=device),
        "state2": torch.zeros(shape, dtype=torch.uint8, device=device),
        "qmap1": F.create_dynamic_map().to(device),
        "qmap2": F.create_dynamic_map(signed=False).to(device),
        "absmax1": torch.zeros(blocks, device=device),
        "absmax2": torch.zeros(blocks, device=device),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 300), (0,)])
def test_8bit(dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    p = torch.randn(shape, device=device).to(dtype)
    state = state_8bit(shape, device)
    m, v = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    for step in (1, 2, 3):
        g = torch.randn(shape, device=device).to(dtype)
        expected, m, v = adam(p.float(), g.float(), m, v, step)
        F.optimizer_update_8bit_blockwise(
            "adam", g, p, step=step, beta2=0.99, beta3=0.0, alpha=0.0, **state, **CONSTANTS
        )
        torch.testing.assert_close(p.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
        for i, moment in ((1, m), (2, v)):
            codes, scales = F.quantize_blockwise(moment, state[f"qmap{i}"], blocksize=256)
            torch.testing.assert_close(state[f"absmax{i}"], scales.absmax)
            # A value half-way between two codes may take either.
            assert (state[f"state{i}"].int() - codes.int()).abs().le(1).all()
        m, v = (
            F.dequantize_blockwise(
                state[f"state{i}"],
                absmax=state[f"absmax{i}"],
                code=state[f"qmap{i}"],
                blocksize=256,
            )
            for i in (1, 2)
        )


@pytest.mark.parametrize("vector", [False, True])
def test_max_unorm(vector: bool, device: str) -> None:
    p, m = torch.ones(300, device=device), torch.zeros(300, device=device)
    norm = torch.zeros(1, device=device) if vector else None
    F.optimizer_update_32bit(
        "lars", 3 * torch.ones_like(p), p, m, 0.9, 0.0, 1, 1.0, unorm_vec=norm, max_unorm=0.5
    )
    torch.testing.assert_close(p, torch.full_like(p, 0.5))
    if norm is not None:
        torch.testing.assert_close(norm, torch.full_like(norm, 3 * 300**0.5))


def test_one_state_in_8bit(device: str) -> None:
    state = state_8bit((300,), device)
    first = {key: state[key] for key in ("state1", "qmap1", "absmax1")}
    p = torch.zeros(300, device=device)
    g = torch.linspace(-1.0, 1.0, 300, device=device)
    others = dict.fromkeys(("state2", "qmap2", "absmax2"))
    constants = {"beta1": 0.9, "beta2": 0.99, "beta3": 0.0, "alpha": 0.0, "eps": 0.0}
    F.optimizer_update_8bit_blockwise("lion", g, p, step=1, lr=0.5, **constants, **first, **others)
    torch.testing.assert_close(p, -0.5 * g.sign())


def test_skip_zeros(device: str) -> None:
    p, m, v = (torch.full((4,), 5.0, device=device) for _ in range(3))
    g = torch.tensor([0.0, 1.0, 0.0, -1.0], device=device)
    F.optimizer_update_32bit(
        "adam", g, p, m, step=1, state2=v, beta2=0.99, skip_zeros=True, **CONSTANTS
    )
    for tensor in (p, m, v):
        assert (tensor == 5.0).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("wrong", "blamed"),
    [
        ({"max_unorm": -0.1}, "max_unorm"),
        ({"max_unorm": 0.1, "unorm_vec": torch.zeros(2)}, r"unorm_vec\[0\]"),
        ({"optimizer_name": "lion"}, "state2"),
        ({"optimizer_name": "adamish"}, "optimizer_name"),
        ({"state2": None}, "state2"),
        ({"step": 0}, r"step\[0\]"),
        ({"g": torch.zeros(3)}, r"g\[0\]"),
        ({"state1": torch.zeros(4).half()}, r"state1\[0\]"),
    ],
)
def test_what_cannot_be_honoured_is_refused(wrong: dict[str, Any], blamed: str) -> None:
    p = torch.ones(4)
    arguments = {
        "optimizer_name": "adam",
        "g": torch.ones(4),
        "p": p,
        "state1": torch.zeros(4),
        "state2": torch.zeros(4),
        "step": 1,
        "beta2": 0.99,
        **CONSTANTS,
    }
    with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
        F.optimizer_update_32bit(**{**arguments, **wrong})
    assert torch.equal(p, torch.ones(4))


def test_percentile_clipping(device: str) -> None:
    history = torch.zeros(100, device=device)
    norms: list[float] = []
    for step in range(1, 260):
        grad = torch.randn(50, device=device) * (1 + step % 7)
        norm, clip, scale = F.percentile_clipping(grad, history, step, percentile=20)
        norms = [grad.norm().item()] * 100 if step == 1 else [*norms[1:], grad.norm().item()]
        if step == 1:
            oldest = list(norms)
        else:
            oldest[step % 100] = norms[-1]
        expected = sorted(oldest)[20]
        torch.testing.assert_close(norm.item(), norms[-1])
        torch.testing.assert_close(clip.item(), expected)
        torch.testing.assert_close(scale.item(), min(1.0, expected / norms[-1]))


def test_gradients_that_were_zero_do_not_clip_later_ones(device: str) -> None:
    history = torch.zeros(100, device=device)
    F.percentile_clipping(torch.zeros(4, device=device), history, 1)
    assert F.percentile_clipping(torch.ones(4, device=device), history, 2)[2] == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_percentile_clipping_of_16_bit_gradients(dtype: torch.dtype, device: str) -> None:
    grad = torch.full((70_000,), 3.0, dtype=dtype, device=device)
    norm, _, _ = F.percentile_clipping(grad, torch.zeros(100, device=device), 1)
    torch.testing.assert_close(norm.item(), 3.0 * 70_000**0.5, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("wrong", "blamed"),
    [
        ({"gnorm_vec": torch.zeros(99)}, "gnorm_vec"),
        ({"gnorm_vec": torch.zeros(100).half()}, "gnorm_vec"),
        ({"gnorm_vec": torch.zeros(100, device="meta")}, "gnorm_vec"),
        ({"step": 0}, "step"),
        ({"percentile": 100}, "percentile"),
        ({"percentile": -1}, "percentile"),
    ],
)
def test_percentile_clipping_refuses(wrong: dict[str, Any], blamed: str) -> None:
    arguments = {"grad": torch.ones(3), "gnorm_vec": torch.zeros(100), "step": 1, **wrong}
    with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
        F.percentile_clipping(**arguments)
