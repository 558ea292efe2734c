"""torch.ops.bitsandbytes.*: bnbx's operators under the names and schemas of bitsandbytes."""

from __future__ import annotations

from .processes import REGISTERED, run

SAMPLES = (
    REGISTERED
    + """
import torch
from bnbx import functional as F
torch.manual_seed(0)
theirs, ours = torch.ops.bitsandbytes, torch.ops.bnbx
W, A = torch.randn(48, 64), torch.randn(3, 64)
CA, SCA, _ = F.int8_vectorwise_quant(A)
CB, SCB, _ = F.int8_vectorwise_quant(W)
codes, absmax = theirs.quantize_4bit(W, 64, "nf4", torch.uint8)
code = F.get_4bit_type("nf4")
map8 = F.create_dynamic_map()

def same(got, expected):
    got, expected = ((x,) if isinstance(x, torch.Tensor) else x for x in (got, expected))
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b))
"""
)


def test_values_are_those_of_bnbx():
    run(
        SAMPLES
        + """
calls = {
    "quantize_4bit": (W, 64, "nf4", torch.uint8),
    "dequantize_4bit": (codes, absmax, 64, "nf4", [48, 64], torch.float32),
    "gemm_4bit": (A, codes, [48, 64], absmax, 64, "nf4"),
    "quantize_blockwise": (W, map8, 256),
    "dequantize_blockwise": (*F.quantize_blockwise(W, blocksize=256)[:1],
        F.quantize_blockwise(W, blocksize=256)[1].absmax, map8, 256, torch.float32),
    "int8_vectorwise_quant": (A, 2.0),
    "int8_vectorwise_dequant": (CA, SCA),
    "int8_double_quant": (A, 0.0),
    "int8_linear_matmul": (CA, CB),
    "int8_mm_dequant": (F.int8_linear_matmul(CA, CB), SCA, SCB),
    "int8_scaled_mm": (CA, CB, SCA, SCB, None, torch.float32),
    "int8_mixed_scaled_mm": (A, CA, CB, SCA, SCB),
}
for name, arguments in calls.items():
    same(getattr(theirs, name)(*arguments), getattr(ours, name)(*arguments))
same(theirs.gemv_4bit(A, codes, [48, 64], absmax, code, 64),
     ours.gemm_4bit(A, codes, [48, 64], absmax, 64, "nf4"))
for name, shape, arguments in (
    ("dequantize_4bit", (48, 64), calls["dequantize_4bit"]),
    ("dequantize_blockwise", (48, 64), calls["dequantize_blockwise"]),
    ("gemv_4bit", (3, 48), (A, codes, [48, 64], absmax, code, 64)),
):
    out = torch.full(shape, torch.nan)
    assert getattr(theirs, name).out(*arguments, out) is None
    same(out, getattr(theirs, name)(*arguments))
out = torch.empty(3, 48, dtype=torch.int32)
theirs.int8_linear_matmul.out(CA, CB, out)
same(out, theirs.int8_linear_matmul(CA, CB))
try:
    theirs.gemv_4bit(A, codes, [48, 64], absmax, code + 1, 64)
except ValueError as failure:
    assert "code: expected" in str(failure)
else:
    raise AssertionError
"""
    )


def test_optimizers_update_in_place():
    run(
        SAMPLES
        + """
def tensors():
    torch.manual_seed(1)
    return [torch.randn(512) for _ in range(2)], [torch.zeros(512) for _ in range(2)]

(g, p), (s1, s2) = tensors()
(_, q), (t1, t2) = tensors()
norm = torch.zeros(1)
theirs.optimizer_update_32bit("adam", g, p, s1, s2, norm, 0.1, float(p.norm()), 0.9, 0.999, 0.0,
                              0.0, 1e-8, 0.01, 1, 1e-2, 1.0, False)
F.optimizer_update_32bit("adam", g, q, t1, 0.9, 1e-8, 1, 1e-2, t2, 0.999, 0.0, 0.0, 0.01, 1.0,
                         torch.zeros(1), 0.1)
same((p, s1, s2), (q, t1, t2))
assert norm > 0 and s1.any()
codes1, codes2 = (torch.zeros(512, dtype=torch.uint8) for _ in range(2))
scales1, scales2 = torch.zeros(2), torch.zeros(2)
unsigned = F.create_dynamic_map(False)
theirs.optimizer_update_8bit_blockwise("adam", g, p, codes1, codes2, 0.9, 0.999, 0.0, 0.0, 1e-8, 1,
    1e-2, map8, unsigned, scales1, scales2, 0.01, 1.0, False)
assert scales1.all() and scales2.all() and not torch.equal(p, q)
"""
    )


def test_fake_tensors_and_compile():
    run(
        SAMPLES
        + """
from torch._subclasses import FakeTensorMode

def products(A):
    decoded = theirs.dequantize_4bit(codes, absmax, 64, "nf4", [48, 64], torch.float32)
    return (theirs.gemv_4bit(A, codes, [48, 64], absmax, code, 64), A @ decoded.t(),
            theirs.int8_scaled_mm(CA, CB, SCA, SCB))

compiled = torch.compile(products, backend="aot_eager", fullgraph=True)
same(compiled(A), products(A))
with FakeTensorMode(allow_non_fake_inputs=True) as mode:
    fake = mode.from_tensor(A)
    for got, expected in zip(products(fake), products(A)):
        assert got.shape == expected.shape and got.dtype == expected.dtype
"""
    )
