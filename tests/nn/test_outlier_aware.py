"""OutlierAwareLinear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bnbx.nn import OutlierAwareLinear
from bnbx.utils import OutlierTracer


class Rounding(OutlierAwareLinear):
    """Rounds all but the outlier features."""

    def quantize_weight(self, w: Tensor, outlier_idx: Tensor | None) -> Tensor:
        rounded = w.round()
        rounded[:, outlier_idx] = w[:, outlier_idx]
        return rounded

    def forward_with_outliers(self, x: Tensor, outlier_idx: Tensor | None) -> Tensor:
        assert outlier_idx is self.outlier_dim
        return torch.nn.functional.linear(x, self.weight, self.bias)


def test_the_weight_is_quantized_once_around_the_outliers() -> None:
    layer = Rounding(16, 4)
    weight = layer.weight.detach().clone() * 10
    layer.weight.data.copy_(weight)
    OutlierTracer.get_instance().initialize(layer)
    x = torch.randn(8, 16)
    x[:, 5] = 100.0
    y = layer(x)
    assert layer.outlier_dim.tolist() == [5]
    expected = weight.round()
    expected[:, 5] = weight[:, 5]
    assert torch.equal(layer.weight, expected)
    assert torch.equal(y, torch.nn.functional.linear(x, expected, layer.bias))
    layer(torch.zeros(1, 16))
    assert torch.equal(layer.weight, expected)


def test_what_a_subclass_must_define() -> None:
    layer = OutlierAwareLinear(16, 4)
    weight = layer.weight.detach().clone()
    OutlierTracer.get_instance().initialize(layer)
    with pytest.raises(NotImplementedError, match="quantize_weight"):
        layer(torch.randn(2, 16))
    layer.is_quantized = True
    with pytest.raises(NotImplementedError, match="forward_with_outliers"):
        layer(torch.randn(2, 16))
    assert torch.equal(layer.weight, weight)


def test_the_tracer_must_be_initialized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OutlierTracer, "_instance", None)
    with pytest.raises(RuntimeError, match="initialize"):
        Rounding(16, 4)(torch.randn(2, 16))
