"""OutlierAwareLinear: a base class for layers that treat outlier features in their own way."""

from __future__ import annotations

import torch
from torch import Tensor

from bnbx.utils import OutlierTracer


class OutlierAwareLinear(torch.nn.Linear):
    """A linear layer that gets its outlier features from ``OutlierTracer``.

    Subclasses define ``quantize_weight(w, outlier_idx)``, whose result replaces the weight in the
    first forward pass, and ``forward_with_outliers(x, outlier_idx)``, the product. Before that pass
    call ``OutlierTracer.get_instance().initialize(model)``.

    Parameters
    ----------
    input_features, output_features
        K and N.
    bias
        Whether there is a bias.
    device
        Where weight and bias are made.

    Attributes
    ----------
    outlier_dim
        Indices of the outlier features, None before the first forward pass.
    is_quantized
        Whether ``quantize_weight`` has been applied.

    Raises
    ------
    NotImplementedError
        In forward, if a subclass does not define the two methods.
    RuntimeError
        In forward, if the tracer is not initialized.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.outlier_dim: Tensor | None = None
        self.is_quantized = False

    def forward_with_outliers(self, x: Tensor, outlier_idx: Tensor | None) -> Tensor:
        """Return the layer's output."""
        msg = f"{type(self).__name__} does not define forward_with_outliers(x, outlier_idx)."
        raise NotImplementedError(msg)

    def quantize_weight(self, w: Tensor, outlier_idx: Tensor | None) -> Tensor:
        """Return the quantized weight, of w's shape."""
        msg = f"{type(self).__name__} does not define quantize_weight(w, outlier_idx)."
        raise NotImplementedError(msg)

    def forward(self, x: Tensor) -> Tensor:
        if self.outlier_dim is None:
            self.outlier_dim = OutlierTracer.get_instance().get_outliers(self.weight)
        if not self.is_quantized:
            with torch.no_grad():
                self.weight.copy_(self.quantize_weight(self.weight, self.outlier_dim))
            self.is_quantized = True
        return self.forward_with_outliers(x, self.outlier_dim)
