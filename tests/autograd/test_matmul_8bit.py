"""The int8 matmul against the dense product with the decoded weight."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bnbx import functional as F
from bnbx.autograd import MatmulLtState, matmul
from bnbx.autograd.rows import rows_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

#: torch's own tracing of autograd.Function warns of how torch itself uses it.
quiet_compiler = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def leaf(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype).requires_grad_()


def output_gradient(output: Tensor) -> Tensor:
    """Return an output gradient that is the same in every call, and the same in every dtype."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-64, 65, output.shape, generator=generator).to(output) / 64


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [*torch.autograd.grad(output, inputs, output_gradient(output))]


def assert_gradients(output: Tensor, A: Tensor, bias: Tensor, weight: Tensor) -> None:
    """Check the gradients of A and the bias against those of the product with a float64 weight."""
    grad = output_gradient(output).double()
    expected = (grad @ weight, rows_of(grad).sum(0))
    magnitudes = (grad.abs() @ weight.abs(), rows_of(grad).abs().sum(0))
    for mine, theirs, size in zip(gradients(output, [A, bias]), expected, magnitudes, strict=True):
        assert mine.dtype == A.dtype
        # The weight, the products and their sum are rounded, each at most by its magnitude.
        assert ((mine - theirs).abs() <= 2 * torch.finfo(A.dtype).eps * size).all()


def int8_state(weight: Tensor, threshold: float = 0.0) -> MatmulLtState:
    CB, SCB, _ = F.int8_vectorwise_quant(weight)
    return MatmulLtState(CB=CB, SCB=SCB, has_fp16_weights=False, threshold=threshold)


def decoded(state: MatmulLtState) -> Tensor:
    assert state.CB is not None
    assert state.SCB is not None
    return state.CB.double() * state.SCB.double().unsqueeze(1) / 127


def product(A: Tensor, state: MatmulLtState) -> Tensor:
    """Return LLM.int8() in float64: inlier columns as rounded to int8, outliers as they are."""
    rows = A.double().reshape(math.prod(A.shape[:-1]), A.shape[-1])
    outliers = torch.zeros_like(rows, dtype=torch.bool)
    if state.threshold > 0:
        outliers |= (rows.abs() >= state.threshold).any(0)
    inliers = rows.masked_fill(rows.abs() >= (state.threshold or math.inf), 0.0)
    step = inliers.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    rounded = torch.where(outliers, rows, (inliers / step).round() * step)
    return (rounded @ decoded(state).t()).view(*A.shape[:-1], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3), (2, 1, 3)])
def test_int8_weight(
    dtype: torch.dtype, threshold: float, batch: tuple[int, ...], device: str
) -> None:
    state = int8_state(torch.randn(48, 64, device=device), threshold)
    A, bias = leaf(*batch, 64, device=device, dtype=dtype), leaf(48, device=device, dtype=dtype)
    weight = state.CB
    assert weight is not None
    output = matmul(A, weight, state=state, bias=bias)
    assert output.dtype == dtype
    expected = product(A.detach(), state) + bias.double()
    # An element half-way between two codes may take either: one step of a row's scale.
    atol = 0.05 + 40 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=atol)
    error = (output.double() - expected).square().mean().sqrt()
    assert error < 0.005 + 4 * torch.finfo(dtype).eps

    assert_gradients(output, A, bias, decoded(state))


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_training_and_eval_give_the_same(threshold: float, device: str) -> None:
    state = int8_state(torch.randn(48, 64, device=device), threshold)
    A, outputs = leaf(5, 64, device=device), []
    for state.is_training in (True, False):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                outputs.append(matmul(A, state.CB, state=state))  # type: ignore[arg-type]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_16_bit_weight(dtype: torch.dtype, batch: tuple[int, ...], device: str) -> None:
    A, bias = leaf(*batch, 33, device=device, dtype=dtype), leaf(17, device=device, dtype=dtype)
    weight = leaf(17, 33, device=device, dtype=dtype)
    state = MatmulLtState()
    output = matmul(A, weight, state=state, bias=bias)
    reference = int8_state(weight.detach())
    assert torch.equal(output, matmul(A, weight, state=reference, bias=bias))
    assert state.CB is None

    grad = rows_of(output_gradient(output)).double()
    rows = rows_of(A.detach()).double()
    (grad_weight,) = gradients(output, [weight])
    assert grad_weight.dtype == dtype
    bound = 2 * torch.finfo(dtype).eps * (grad.abs().t() @ rows.abs())
    assert ((grad_weight - grad.t() @ rows).abs() <= bound).all()
    output = matmul(A, weight, state=state, bias=bias)
    assert_gradients(output, A, bias, decoded(reference))


def test_a_changed_16_bit_weight_counts_at_once(device: str) -> None:
    A, weight = torch.randn(4, 64, device=device), torch.randn(8, 64, device=device)
    state = MatmulLtState(is_training=False)
    first = matmul(A, weight, state=state)
    weight.mul_(2)
    torch.testing.assert_close(matmul(A, weight, state=state), 2 * first)


def test_weight_is_quantized_once_into_the_state(device: str) -> None:
    A, weight = torch.randn(4, 64, device=device), torch.randn(8, 64, device=device)
    before = weight.clone()
    state = MatmulLtState(has_fp16_weights=False)
    output = matmul(A, weight, state=state)
    expected = F.int8_vectorwise_quant(weight)
    assert torch.equal(state.CB, expected[0])  # type: ignore[arg-type]
    assert torch.equal(state.SCB, expected[1])  # type: ignore[arg-type]
    assert torch.equal(matmul(A, weight * 3, state=state), output)
    assert torch.equal(weight, before)
    state.reset_grads()
    assert state.CB is None
    torch.testing.assert_close(matmul(A, weight * 3, state=state), 3 * output)


def test_neither_pass_changes_the_weight(device: str) -> None:
    state = int8_state(torch.randn(48, 64, device=device), threshold=1.0)
    before = copy.deepcopy(state)
    matmul(torch.randn(3, 64, device=device), state.CB, state=state)  # type: ignore[arg-type]
    matmul(leaf(3, 64, device=device), state.CB, state=state).sum().backward()  # type: ignore[arg-type]
    assert torch.equal(state.CB, before.CB)  # type: ignore[arg-type]
    assert torch.equal(state.SCB, before.SCB)  # type: ignore[arg-type]


def test_threshold_argument_sets_that_of_the_state(device: str) -> None:
    A, weight = torch.randn(4, 64, device=device), torch.randn(8, 64, device=device)
    A[1, 3] = 50.0
    state = int8_state(weight)
    without = matmul(A, weight, state=state)
    with_threshold = matmul(A, weight, state=state, threshold=6.0)
    assert state.threshold == 6.0
    exact = A @ decoded(state).float().t()
    assert (with_threshold - exact).abs().max() < 0.1 * (without - exact).abs().max()
    assert torch.equal(matmul(A, weight, state=state), with_threshold)


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_empty_batch(shape: tuple[int, ...], device: str) -> None:
    A, weight, bias = (
        leaf(*shape, device=device),
        leaf(8, 64, device=device),
        leaf(8, device=device),
    )
    output = matmul(A, weight, bias=bias)
    assert output.shape == (*shape[:-1], 8)
    for grad, leaf_ in zip(gradients(output, [A, weight, bias]), (A, weight, bias), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf_))


def test_out_and_mixed_dtypes(device: str) -> None:
    state = int8_state(torch.randn(8, 64, device=device))
    A = leaf(3, 64, device=device, dtype=torch.bfloat16)
    bias = leaf(8, device=device)
    expected = matmul(A, state.CB, state=state, bias=bias)  # type: ignore[arg-type]
    assert expected.dtype == torch.bfloat16
    (grad,) = gradients(expected, [bias])
    assert grad.dtype == torch.float32
    out = torch.empty_like(expected)
    assert matmul(A, state.CB, out, state, bias=bias) is out  # type: ignore[arg-type]
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="^out: expected shape"):
        matmul(A, state.CB, out.float().detach(), state)  # type: ignore[arg-type]
    weight = leaf(8, 64, device=device)
    (grad,) = gradients(matmul(A, weight), [weight])
    assert grad.dtype == torch.float32


def test_state_has_what_other_libraries_look_for() -> None:
    state = MatmulLtState()
    for name in ("CB", "CxB", "SB", "SCB", "idx", "outlier_pool"):
        assert getattr(state, name) is None
    assert (state.threshold, state.use_pool, state.force_no_igemmlt) == (0.0, False, False)
    assert state.is_training
    assert state.has_fp16_weights
    state = int8_state(torch.randn(8, 64), threshold=6.0)
    state.reset_grads()
    assert (state.CB, state.SCB, state.threshold) == (None, None, 6.0)


def test_wrong_arguments() -> None:
    A, weight = torch.randn(2, 64), torch.randn(8, 64)
    state = int8_state(weight)
    without_scales = int8_state(weight)
    without_scales.SCB = None
    fresh = MatmulLtState(has_fp16_weights=False)
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((A[:, :63], weight), {"state": state}, "A"),
        ((A.double(), weight), {"state": state}, "A"),
        ((A, weight), {"state": without_scales}, "state.SCB"),
        ((A, state.CB), {"state": fresh}, "B"),
        ((A, state.CB), {}, "B"),
        ((A, weight), {"state": state, "bias": torch.randn(7)}, "bias"),
    ]
    for args, kwargs, blamed in cases:
        with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
            matmul(*args, **kwargs)


@quiet_compiler
@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("fp16_weights", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compiles_into_one_graph(
    threshold: float, fp16_weights: bool, grad: bool, device: str
) -> None:
    weight = torch.randn(8, 64, device=device)
    state = MatmulLtState(threshold=threshold) if fp16_weights else int8_state(weight, threshold)
    weight.requires_grad_(grad and fp16_weights)

    def layer(A: Tensor, bias: Tensor) -> Tensor:
        return matmul(A.tanh() * 4, weight, state=state, bias=bias) * 2

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (2, 5):
        A = leaf(rows, 64, device=device).requires_grad_(grad)
        bias = leaf(8, device=device).requires_grad_(grad)
        expected, output = layer(A, bias), compiled(A, bias)
        torch.testing.assert_close(output, expected)
        if grad:
            inputs = [A, bias, weight] if fp16_weights else [A, bias]
            torch.testing.assert_close(gradients(output, inputs), gradients(expected, inputs))
