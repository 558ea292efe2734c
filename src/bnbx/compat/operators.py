"""The operators of bitsandbytes, ``torch.ops.bitsandbytes.*``, as calls of those of bnbx.

All but ``gemv_4bit`` are compositions: fake tensors, ``torch.compile`` and ``torch.export`` look
through them and see bnbx's operators. Schemas are bitsandbytes', so arguments come by position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bnbx.codebooks import QUANT_TYPES_4BIT, get_4bit_type
from bnbx.functional import optimizer_update_8bit_blockwise, optimizer_update_32bit
from bnbx.functional.outputs import into
from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LIBRARY = torch.library.Library("bitsandbytes", "FRAGMENT")  # noqa: TOR901 (it lives as long as the process)

_BLOCKWISE = "Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype"
_4BIT = "Tensor A, Tensor absmax, int blocksize, str quant_type, SymInt[] shape, ScalarType dtype"
_GEMV = "Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, Tensor code, int blocksize"
_OPTIMIZER = "str optimizer_name, Tensor g, Tensor(a!) p, Tensor(b!) state1, Tensor(c!)? state2"
_BETAS = "float beta1, float beta2, float beta3, float alpha, float eps"

#: Operators whose schema is that of bnbx's operator of the same name, or its beginning.
_SAME = {
    "dequantize_4bit": f"({_4BIT}) -> Tensor",
    "dequantize_blockwise": f"({_BLOCKWISE}) -> Tensor",
    "gemm_4bit": "(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, "
    "str quant_type, Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
    "Tensor? absmax_offset=None) -> Tensor",
    "int8_double_quant": "(Tensor A, float threshold=0.) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor?)",
    "int8_linear_matmul": "(Tensor A, Tensor B) -> Tensor",
    "int8_mixed_scaled_mm": "(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, "
    "Tensor? outlier_cols=None, Tensor? bias=None) -> (Tensor, Tensor?)",
    "int8_mm_dequant": "(Tensor A, Tensor row_stats, Tensor col_stats, ScalarType? dtype=None, "
    "Tensor? bias=None) -> Tensor",
    "int8_scaled_mm": "(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, "
    "Tensor? bias=None, ScalarType? dtype=None) -> Tensor",
    "int8_vectorwise_dequant": "(Tensor A, Tensor stats) -> Tensor",
    "int8_vectorwise_quant": "(Tensor A, float threshold=0.) -> (Tensor, Tensor, Tensor?)",
    "quantize_4bit": "(Tensor A, int blocksize, str quant_type, ScalarType quant_storage) "
    "-> (Tensor, Tensor)",
    "quantize_blockwise": "(Tensor A, Tensor code, int blocksize) -> (Tensor, Tensor)",
}


def _define(
    schema: str, implementation: Callable[..., Any], key: str = "CompositeImplicitAutograd"
) -> None:
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(schema.partition("(")[0], implementation, key)


def _with_out(name: str) -> Callable[..., None]:
    """Return bnbx's operator with its output as the last argument, not as a keyword."""
    operator = getattr(torch.ops.bnbx, name).out

    def call(*args: Any) -> None:
        operator(*args[:-1], out=args[-1])

    return call


def _quant_type(code: Tensor) -> str:
    """Return the 4-bit type that has these 16 entries."""
    for quant_type in QUANT_TYPES_4BIT:
        table = get_4bit_type(quant_type, device=code.device)
        if code.shape == table.shape and torch.allclose(code.float(), table, rtol=0, atol=1e-4):
            return quant_type
    raise error("code", f"the table of one of {QUANT_TYPES_4BIT}", code.tolist())


def _gemv_4bit(
    A: Tensor, B: Tensor, shapeB: list[int], absmax: Tensor, code: Tensor, blocksize: int
) -> Tensor:
    quant_type = _quant_type(code)
    return torch.ops.bnbx.gemm_4bit.default(A, B, shapeB, absmax, blocksize, quant_type)  # type: ignore[no-any-return]


def _gemv_4bit_fake(A: Tensor, B: Tensor, shapeB: list[int], *_: Any) -> Tensor:  # noqa: ARG001
    return A.new_empty((*A.shape[:-1], shapeB[0]))


def _changes_values_only(*_: Any) -> None:
    """Be the fake kernel of an operator that writes into a tensor it is given."""


def _gemv_4bit_out(*args: Any) -> None:
    into("out", args[-1], _gemv_4bit(*args[:-1]))


def _optimizer_update_32bit(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    unorm_vec: Tensor | None,
    max_unorm: float,
    param_norm: float,  # noqa: ARG001 (the norm of p, which the operator measures)
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    step: int,
    lr: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    optimizer_update_32bit(
        *(optimizer_name, g, p, state1, beta1, eps, step, lr, state2, beta2, beta3, alpha),
        *(weight_decay, gnorm_scale, unorm_vec, max_unorm, skip_zeros),
    )


for _name, _signature in _SAME.items():
    _define(_name + _signature, getattr(torch.ops.bnbx, _name).default)
_define(f"dequantize_4bit.out({_4BIT}, Tensor(a!) out) -> ()", _with_out("dequantize_4bit"))
_define(
    f"dequantize_blockwise.out({_BLOCKWISE}, Tensor(a!) out) -> ()",
    _with_out("dequantize_blockwise"),
)
_define(
    "int8_linear_matmul.out(Tensor A, Tensor B, Tensor(a!) out) -> ()",
    _with_out("int8_linear_matmul"),
)
# The type of the weight is read off the values of its table, which a fake tensor does not have.
_define(f"gemv_4bit({_GEMV}) -> Tensor", _gemv_4bit, "CompositeExplicitAutograd")
_define(
    f"gemv_4bit.out({_GEMV}, Tensor(a!) out) -> ()", _gemv_4bit_out, "CompositeExplicitAutograd"
)
_define(
    f"optimizer_update_32bit({_OPTIMIZER}, Tensor(d!)? unorm_vec, float max_unorm, "
    f"float param_norm, {_BETAS}, float weight_decay, int step, float lr, float gnorm_scale, "
    "bool skip_zeros=False) -> ()",
    _optimizer_update_32bit,
)
_define(
    f"optimizer_update_8bit_blockwise({_OPTIMIZER}, {_BETAS}, int step, float lr, "
    "Tensor(d!) qmap1, Tensor(e!)? qmap2, Tensor(f!) absmax1, Tensor(g!)? absmax2, "
    "float weight_decay, float gnorm_scale, bool skip_zeros=False) -> ()",
    optimizer_update_8bit_blockwise,
)
torch.library.register_fake("bitsandbytes::gemv_4bit", _gemv_4bit_fake, lib=LIBRARY)
torch.library.register_fake("bitsandbytes::gemv_4bit.out", _changes_values_only, lib=LIBRARY)
