"""Packing of dictionaries, and outlier features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from bnbx.utils import (
    OutlierTracer,
    find_outlier_dims,
    pack_dict_to_tensor,
    unpack_tensor_to_dict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_dict_round_trip() -> None:
    for source in ({}, {"a": 1, "b": [1.5, None], "c": {"d": "\N{SNOWMAN}"}}):
        packed = pack_dict_to_tensor(source)
        assert packed.dtype == torch.uint8
        assert packed.dim() == 1
        assert unpack_tensor_to_dict(packed) == source


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(0, dtype=torch.uint8),
        torch.zeros((), dtype=torch.uint8),
        torch.zeros(1, 2, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.uint8, device="meta"),
        torch.full((70000,), 32, dtype=torch.uint8),
        torch.tensor([*b"3"], dtype=torch.uint8),
        "{}",
    ],
    ids=repr,
)
def test_what_is_no_packed_dict(packed: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^tensor_data: expected .*, got"):
        unpack_tensor_to_dict(packed)


def test_outlier_dims() -> None:
    weight = torch.randn(50, 40)
    weight[:, 7] *= 30
    weight[11] *= 30
    assert 7 in find_outlier_dims(weight).tolist()
    assert find_outlier_dims(weight, topk=1).tolist() == [7]
    assert find_outlier_dims(weight, reduction_dim=1, topk=1).tolist() == [11]
    assert find_outlier_dims(weight, zscore=100.0).numel() == 0
    random = find_outlier_dims(weight, topk=5, rdm=True)
    assert random.shape == (5,)
    assert random.max() < 40
    with pytest.raises(ValueError, match="^topk: expected"):
        find_outlier_dims(weight, rdm=True)


@pytest.fixture
def tracer() -> Iterator[OutlierTracer]:
    OutlierTracer._instance = None
    yield OutlierTracer.get_instance()
    OutlierTracer._instance = None


def test_tracer(tracer: OutlierTracer) -> None:
    assert OutlierTracer.get_instance() is tracer
    assert not tracer.is_initialized()
    model = torch.nn.Sequential(
        torch.nn.Linear(30, 40), torch.nn.ReLU(), torch.nn.Linear(40, 20), torch.nn.Linear(20, 5)
    )
    first, second, third = model[0], model[2], model[3]
    with pytest.raises(RuntimeError, match="initialize"):
        tracer.get_outliers(first.weight)
    with torch.no_grad():
        second.weight[:, 33] *= 50
    tracer.initialize(model)
    assert tracer.is_initialized()
    assert tracer.get_outliers(first.weight) is None

    features = torch.randn(2, 50, 30)
    features[..., 4] *= 40  # stands out by its deviation and by its magnitude
    features[1, 3, 9] = 7.0  # by its magnitude alone
    before = [m.weight.detach().clone() for m in (first, second, third)]
    model(features)
    outliers = [tracer.get_outliers(m.weight) for m in (first, second, third)]
    assert [o.tolist() for o in outliers if o is not None] == [[4, 9], [33], []]
    assert all(map(torch.equal, before, (first.weight, second.weight, third.weight)))
    assert not any(m._forward_pre_hooks for m in (first, second, third))


def test_tracer_forgets_the_model_before(tracer: OutlierTracer) -> None:
    old, new = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    tracer.initialize(old)
    tracer.initialize(new)
    assert not old._forward_pre_hooks
    new(torch.randn(3, 8))
    assert tracer.get_outliers(old.weight) is None
    assert tracer.get_outliers(new.weight) is not None


def test_there_is_one_tracer() -> None:
    with pytest.raises(RuntimeError, match="get_instance"):
        OutlierTracer()
