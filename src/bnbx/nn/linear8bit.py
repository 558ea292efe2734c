"""Linear8bitLt: a linear layer with an int8 weight, LLM.int8()."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from bnbx.autograd import MatmulLtState, matmul
from bnbx.autograd.matmul_8bit import product
from bnbx.nn.int8params import Int8Params
from bnbx.nn.module8bit import Module8bit

if TYPE_CHECKING:
    from typing_extensions import Self


class Linear8bitLt(Module8bit, torch.nn.Linear):
    """``torch.nn.Linear`` with a weight in int8, quantized when it is moved to a device.

    Load or assign a floating point weight, then call ``.to(device)``. Gradients flow to the input,
    the bias and, with ``has_fp16_weights``, the weight. A forward pass changes neither weight nor
    bias.

    Parameters
    ----------
    input_features, output_features
        K and N.
    bias
        Whether there is a bias, in floating point.
    has_fp16_weights
        Whether the weight stays in floating point, to be trained, and is quantized in each forward
        pass.
    threshold
        Columns of the input with a magnitude of at least this are multiplied in 16 bit; none at 0.
        6 is the paper's choice.
    index
        Kept as an attribute for programs that look for it.
    device
        Where weight and bias are made; that does not quantize the weight.

    Attributes
    ----------
    state
        The settings and, once the weight is quantized, its codes ``CB`` and scales ``SCB``, which
        ``weight.CB`` and ``weight.SCB`` are too.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), section 3.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = True,
        threshold: float = 0.0,
        index: Any = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.index = index
        self.state = MatmulLtState(
            threshold=threshold,
            has_fp16_weights=has_fp16_weights,
            use_pool=threshold > 0.0 and not has_fp16_weights,
        )
        self.weight = Int8Params(
            self.weight.data, requires_grad=has_fp16_weights, has_fp16_weights=has_fp16_weights
        )

    def _weight_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _scales(self) -> Tensor | None:
        scales = super()._scales()
        return self.state.SCB if scales is None and not self.state.has_fp16_weights else scales

    def _adopt_weight(self) -> None:
        weight = self._parameters.get("weight")
        if not isinstance(weight, Int8Params):
            return
        if weight.SCB is not None:
            self.init_8bit_state()
        elif not weight.holds_codes:
            self.state.reset_grads()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what the copy's weight has."""
        state = self.__dict__.copy()
        if getattr(self.weight, "SCB", None) is not None:
            state["state"] = dataclasses.replace(self.state, CB=None, SCB=None)
        return state

    def init_8bit_state(self) -> None:
        """Let the state have the weight's codes and scales; the weight has them still."""
        weight = cast("Int8Params", self.weight)
        self.state.CB, self.state.SCB = weight.CB, weight.SCB

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.state.is_training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight, state = self._parameter("weight"), self.state
        if isinstance(weight, Int8Params) and (
            state.SCB is not weight.SCB or state.CB is not weight.CB
        ):
            self._adopt_weight()
        codes = weight.plain() if isinstance(weight, Int8Params) else weight
        bias, scales = self._parameter("bias"), self._scales()
        if scales is None or codes.dtype != torch.int8:
            # Quantized for this product alone: the state is for a weight that stays quantized.
            return matmul(x, weight, None, MatmulLtState(threshold=state.threshold), 0.0, bias)
        # Not by way of the state, whose view of the codes an exported program would hold as well.
        return product(x, None, codes, scales, state.threshold, bias)
