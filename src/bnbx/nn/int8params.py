"""Int8Params: a weight in int8 with the scales of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.functional import int8_vectorwise_dequant, int8_vectorwise_quant
from bnbx.nn.parameter import QuantizedParameter
from bnbx.ops import error

if TYPE_CHECKING:
    from typing_extensions import Self


class Int8Params(QuantizedParameter):
    """A weight that is quantized to int8, row by row, when it is moved to a device.

    Parameters
    ----------
    data
        The weight in floating point, of shape ``(N, K)``; or its int8 codes. By default ``CB``.
    requires_grad
        Whether it asks for gradients. Codes cannot.
    has_fp16_weights
        Whether it stays in floating point when it is moved.
    CB
        The codes; read only if there is no ``data``, which is the same tensor otherwise.
    SCB
        The largest magnitude of each row, float32 of shape ``(N,)``. Read only with codes.
    quantized_from
        Dtype of the weight before it was quantized, if known.
    kwargs
        Kept as attributes, so that ``Int8Params(data, **other.__dict__)`` takes over all of them.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), section 3.
    """

    SETTINGS = ("has_fp16_weights", "SCB", "quantized_from")

    has_fp16_weights: bool
    CB: Tensor | None
    SCB: Tensor | None
    quantized_from: torch.dtype | None

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = True,
        has_fp16_weights: bool = False,
        CB: Tensor | None = None,
        SCB: Tensor | None = None,
        quantized_from: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Self:
        if data is None:
            data = torch.empty(0) if CB is None else CB
        holds_codes = data.dtype == torch.int8
        self = torch.Tensor._make_subclass(cls, data, requires_grad and data.is_floating_point())
        self.__dict__.update(kwargs)
        self.has_fp16_weights = has_fp16_weights
        self.CB = self.plain() if holds_codes else None
        self.SCB = SCB if holds_codes else None
        self.quantized_from = quantized_from if holds_codes else None
        return self

    @property
    def holds_codes(self) -> bool:
        """Whether the data is int8 codes."""
        return self.plain().dtype == torch.int8

    @property
    def quantizes_on_move(self) -> bool:
        """Whether a move to a device quantizes: not with ``has_fp16_weights``."""
        return not self.has_fp16_weights

    def _quantize(self, weight: Tensor) -> Self:
        codes, self.SCB, _ = int8_vectorwise_quant(weight)
        self.replace_data(codes)
        self.CB = self.plain()
        self.quantized_from = weight.dtype
        return self

    def dequantize(self) -> Tensor:
        """Return the weight in floating point: float32 if it is quantized.

        Raises
        ------
        ValueError
            If it holds codes without scales.
        """
        if not self.holds_codes:
            return self.plain()
        if self.SCB is None:
            raise error("SCB", "the scales of the codes", None)
        return int8_vectorwise_dequant(self.plain(), self.SCB)

    def statistics(self) -> list[Tensor]:
        """Return the scales; nothing if it is not quantized."""
        return [] if self.SCB is None else [self.SCB]

    def _follow(self, device: torch.device) -> None:
        self.CB = self.plain() if self.holds_codes else None
        if self.CB is None:
            self.SCB = self.quantized_from = None
        elif self.SCB is not None and device.type != "meta":
            self.SCB = self.SCB.to(device)

    def _piece(self, view: Tensor) -> Tensor:
        """Return some rows with their scales, or some columns, which all scales belong to."""
        if self.has_fp16_weights:
            return view  # It may be trained: the gradient goes through an ordinary view.
        scales = self.SCB
        if scales is not None and view.dim() == 2 and view.shape[0] != scales.shape[0]:
            first = (view.storage_offset() - self.plain().storage_offset()) // max(
                1, view.stride(0)
            )
            scales = scales[first : first + view.shape[0]]
        return self.like(view, SCB=scales)
