"""The products, in the module that programs import them from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnbx.autograd import MatmulLtState, matmul, matmul_4bit

if TYPE_CHECKING:
    from torch import Tensor

    from bnbx.functional import QuantState

__all__ = ["MatMul4Bit", "MatMul8bitLt", "MatmulLtState", "matmul", "matmul_4bit"]


class MatMul4Bit:
    """``matmul_4bit`` as programs call it that look for an autograd function."""

    @staticmethod
    def apply(
        A: Tensor,
        B: Tensor,
        out: Tensor | None = None,
        bias: Tensor | None = None,
        quant_state: QuantState | None = None,
    ) -> Tensor:
        """Return what :func:`matmul_4bit` returns, whose arguments these are.

        Raises
        ------
        ValueError
            As ``matmul_4bit`` does.
        """
        return matmul_4bit(A, B, quant_state, out, bias)  # type: ignore[arg-type] # checks it


class MatMul8bitLt:
    """``matmul`` as programs call it that look for an autograd function."""

    @staticmethod
    def apply(
        A: Tensor,
        B: Tensor,
        out: Tensor | None = None,
        bias: Tensor | None = None,
        state: MatmulLtState | None = None,
    ) -> Tensor:
        """Return what :func:`matmul` returns, whose arguments these are.

        Raises
        ------
        ValueError
            As ``matmul`` does.
        """
        return matmul(A, B, out, state, bias=bias)
