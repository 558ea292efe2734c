"""matmul_4bit against the dense product with the decoded weight."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from bnbx import functional as F
from bnbx.autograd import matmul_4bit
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("N", "K"), [(48, 64), (5, 33), (17, 130)])
@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_forward_and_gradients(
    dtype: torch.dtype, nested: bool, N: int, K: int, batch: tuple[int, ...], device: str
) -> None:
    weight = torch.randn(N, K, device=device).to(dtype)
    packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    dense = F.dequantize_4bit(packed, state).double()
    A, bias = leaf(*batch, K, device=device, dtype=dtype), leaf(N, device=device, dtype=dtype)
    output = matmul_4bit(A, packed, state, bias=bias)
    grads = gradients(output, [A, bias])

    def product(A: Tensor, dense: Tensor, bias: Tensor) -> Tensor:
        return A @ dense.t() + bias

    inputs = [A.detach().double().requires_grad_(), bias.detach().double().requires_grad_()]
    expected = product(inputs[0], dense, inputs[1])
    # The weight, the products and their sum are rounded, each at most by its magnitude.
    magnitude = product(inputs[0].abs(), dense.abs(), inputs[1].abs())
    grad = output_gradient(output).double()
    magnitudes = [magnitude, grad.abs() @ dense.abs(), rows_of(grad.abs()).sum(0)]
    for mine, theirs, size in zip(
        [output, *grads], [expected, *gradients(expected, inputs)], magnitudes, strict=True
    ):
        assert mine.dtype == dtype
        assert mine.shape == theirs.shape
        assert ((mine - theirs).abs() <= 2 * torch.finfo(dtype).eps * size).all()
    with torch.no_grad():
        assert torch.equal(matmul_4bit(A, packed, state, bias=bias), output)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("blocksize", [32, 256, 4096])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_formats(quant_type: str, blocksize: int, storage: torch.dtype, device: str) -> None:
    packed, state = F.quantize_4bit(
        torch.randn(24, 40, device=device),
        blocksize=blocksize,
        quant_type=quant_type,
        quant_storage=storage,
    )
    dense = F.dequantize_4bit(packed, state)
    A = leaf(3, 40, device=device)
    output, expected = matmul_4bit(A, packed, state), A @ dense.t()
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    mine, theirs = gradients(output, [A]), gradients(expected, [A])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one(device: str) -> None:
    packed, state = F.quantize_4bit(torch.randn(8, 64, device=device))
    A, bias = leaf(2, 64, device=device), leaf(8, device=device)
    output = matmul_4bit(A.detach(), packed, state, bias=bias)
    (grad,) = torch.autograd.grad(output.sum(), [bias])
    assert torch.equal(grad, torch.full_like(grad, 2.0))
    output = matmul_4bit(A, packed, state, bias=bias.detach())
    (grad,) = torch.autograd.grad(output.sum(), [A])
    torch.testing.assert_close(grad, F.dequantize_4bit(packed, state).sum(0).expand(2, 64))
    assert not matmul_4bit(A.detach(), packed, state, bias=bias.detach()).requires_grad
    with torch.no_grad():
        assert not matmul_4bit(A, packed, state, bias=bias).requires_grad


def test_the_decoded_weight_is_not_kept(device: str) -> None:
    packed, state = F.quantize_4bit(torch.randn(64, 64, device=device), compress_statistics=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        matmul_4bit(leaf(2, 64, device=device), packed, state, bias=leaf(64, device=device))
    assert [t.data_ptr() for t in kept] == [packed.data_ptr()]


def test_neither_pass_changes_the_weight(device: str) -> None:
    packed, state = F.quantize_4bit(torch.randn(64, 64, device=device), compress_statistics=True)
    before = packed.clone(), copy.deepcopy(state.as_dict(packed=True))
    with torch.no_grad():
        matmul_4bit(torch.randn(3, 64, device=device), packed, state)
    matmul_4bit(leaf(3, 64, device=device), packed, state).sum().backward()
    assert torch.equal(packed, before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in state.as_dict(packed=True).items())


def test_gradient_of_the_gradient(device: str) -> None:
    packed, state = F.quantize_4bit(torch.randn(6, 10, device=device))
    dense = F.dequantize_4bit(packed, state)
    A = leaf(3, 10, device=device)

    def penalty(output: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(output.square().sum(), [A], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [A])[0]

    expected = penalty(A @ dense.t())
    torch.testing.assert_close(
        penalty(matmul_4bit(A, packed, state)), expected, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("nested", [False, True])
def test_transposed_views_of_slices(nested: bool, device: str) -> None:
    """Several weights in one packed tensor, as fused layers keep them."""
    weights = [torch.randn(n, 64, device=device) for n in (8, 3, 20)]
    pairs = [F.quantize_4bit(w, compress_statistics=nested) for w in weights]
    fused = torch.cat([packed for packed, _ in pairs])
    A, start = leaf(2, 64, device=device), 0
    for packed, state in pairs:
        B = fused[start : start + len(packed)]
        start += len(packed)
        expected = matmul_4bit(A, packed, state)
        expected_grads = gradients(expected, [A])
        for view in (B, B.t()):
            output = matmul_4bit(A, view, state)
            assert torch.equal(output, expected)
            assert torch.equal(*gradients(output, [A]), *expected_grads)


@pytest.mark.parametrize("shape", [(64, 24), (10, 33)])
def test_weight_quantized_as_k_by_n(shape: tuple[int, int], device: str) -> None:
    packed, state = F.quantize_4bit(torch.randn(shape, device=device), compress_statistics=True)
    dense = F.dequantize_4bit(packed, state)
    A, bias = leaf(2, 3, shape[0], device=device), leaf(shape[1], device=device)
    with pytest.warns(DeprecationWarning, match="Quantize its transpose") as caught:
        output = matmul_4bit(A, packed, state, bias=bias)
    assert [w.filename for w in caught] == [__file__]
    expected = A @ dense + bias
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    mine, theirs = gradients(output, [A, bias]), gradients(expected, [A, bias])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(matmul_4bit(A, packed.t(), state, bias=bias), output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bias_of_another_dtype_is_converted(dtype: torch.dtype, device: str) -> None:
    packed, state = F.quantize_4bit(torch.randn(8, 64, device=device))
    A, bias = leaf(300, 64, device=device, dtype=dtype), leaf(8, device=device)
    output = matmul_4bit(A, packed, state, bias=bias)
    assert torch.equal(output, matmul_4bit(A, packed, state, bias=bias.to(dtype)))
    (grad,) = gradients(output, [bias])
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, output_gradient(output).float().sum(0))


@pytest.mark.parametrize("grad", [False, True])
def test_out(grad: bool, device: str) -> None:
    packed, state = F.quantize_4bit(torch.randn(8, 64, device=device))
    A = leaf(3, 64, device=device).requires_grad_(grad)
    expected = matmul_4bit(A, packed, state)
    out = torch.empty(3, 8, device=device)
    assert matmul_4bit(A, packed, state, out) is out
    assert torch.equal(out, expected)
    if grad:
        assert torch.equal(*gradients(out, [A]), *gradients(expected, [A]))
    for wrong in (torch.empty(2, 3, 8), torch.empty(3, 8).half()):
        with pytest.raises(ValueError, match="^out: expected shape"):
            matmul_4bit(A, packed, state, wrong.to(device))


def test_wrong_arguments() -> None:
    packed, state = F.quantize_4bit(torch.randn(8, 64))
    A = torch.randn(2, 64)
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((A, packed, None), {}, "quant_state"),
        ((A, packed, F.quantize_4bit(torch.randn(512))[1]), {}, "quant_state.shape"),
        ((torch.tensor(1.0), packed, state), {}, "quant_state.shape"),
        ((A[:, :63], packed, state), {}, "A"),
        ((A.double(), packed, state), {}, "A"),
        ((A, packed[1:], state), {}, "B"),
        ((A, packed, state), {"bias": torch.randn(7)}, "bias"),
    ]
    for args, kwargs, blamed in cases:
        for grad in (False, True):
            inputs = (args[0].detach().requires_grad_(grad), *args[1:])
            with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
                matmul_4bit(*inputs, **kwargs)


@quiet_compiler
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (64, 24)])
def test_compiles_into_one_graph(
    nested: bool, grad: bool, shape: tuple[int, int], device: str
) -> None:
    packed, state = F.quantize_4bit(torch.randn(shape, device=device), compress_statistics=nested)
    N = 48 if shape[1] == 64 else 24

    def layer(A: Tensor, bias: Tensor) -> Tensor:
        return matmul_4bit(A.relu(), packed, state, bias=bias) * 2

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (2, 5):
        A = leaf(rows, 64, device=device).requires_grad_(grad)
        bias = leaf(N, device=device).requires_grad_(grad)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="matmul_4bit: the weight was quantized")
            expected, output = layer(A, bias), compiled(A, bias)
        torch.testing.assert_close(output, expected)
        if grad:
            torch.testing.assert_close(gradients(output, [A, bias]), gradients(expected, [A, bias]))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        packed, self.state = F.quantize_4bit(torch.randn(48, 64), compress_statistics=True)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = torch.nn.Parameter(torch.randn(48))

    def forward(self, A: Tensor) -> Tensor:
        return matmul_4bit(A, self.weight, self.state, bias=self.bias)


@quiet_compiler
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_exports(strict: bool, grad: bool) -> None:
    model, A = Model(), torch.randn(3, 64)
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(
            model, (A,), strict=strict, dynamic_shapes=({0: torch.export.Dim("rows")},)
        )
    graphs = [m.graph for m in exported.graph_module.modules() if hasattr(m, "graph")]
    targets = [str(node.target) for graph in graphs for node in graph.nodes]
    assert targets.count("bnbx.gemm_4bit.default") == 1
    again = torch.randn(7, 64)
    torch.testing.assert_close(exported.module()(again), model(again))
