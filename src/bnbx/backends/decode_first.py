"""Products with 4-bit weights that decode the weight and leave the product to torch."""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.backends.native_grouped import NativeGroupedBackend

if TYPE_CHECKING:
    from collections.abc import Sequence


class DecodeFirstBackend(NativeGroupedBackend, abc.ABC):
    """The native backend of a GPU; torch has the products for which that is the faster way."""

    @abc.abstractmethod
    def decodes_first(self, A: Tensor, rows: int, shapeB: Sequence[int]) -> bool:
        """Return whether rows of ``A``, so many, are torch's to multiply by a weight."""

    def _multiply_4bit(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        *nested: Any,
        transposed: bool = False,
    ) -> Tensor:
        if not self.decodes_first(A, math.prod(A.shape[:-1]), shapeB):
            call = (A, B, shapeB, absmax, blocksize, quant_type, bias, *nested)
            return super()._multiply_4bit(out, *call, transposed=transposed)
        weight = A.new_empty(shapeB)
        scales = self._scales(absmax, *nested)
        self.dequantize_4bit(weight, B, scales, blocksize, quant_type, shapeB, A.dtype)
        return multiply(out, A, weight if transposed else weight.t(), bias)


def multiply(out: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by a matrix; autocast does not reach products into a given output."""
    M = math.prod(A.shape[:-1])
    rows, products = A.reshape(M, A.shape[-1]), out.view(M, out.shape[-1])
    if bias is None:
        torch.mm(rows, weight, out=products)
    else:
        torch.addmm(bias, rows, weight, out=products)
    return out
