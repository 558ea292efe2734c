"""Embedding and StableEmbedding."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch

from bnbx.nn import Embedding, StableEmbedding
from bnbx.optim import GlobalOptimManager

CLASSES = [Embedding, StableEmbedding]


@pytest.mark.parametrize("cls", CLASSES)
def test_optimizers_keep_32_bit_states(cls: Any) -> None:
    embedding = cls(10, 4)
    others = copy.copy(embedding), copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding))
    for module in (embedding, *others):
        overrides = GlobalOptimManager.get_instance().overrides()
        assert overrides[id(module.weight)]["optim_bits"] == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_is_torchs(dtype: torch.dtype) -> None:
    embedding = Embedding(10, 4, padding_idx=2, dtype=dtype)
    ids = torch.tensor([[1, 2], [9, 1]])
    y = embedding(ids)
    assert torch.equal(y, embedding.weight[ids])
    assert y.dtype == dtype
    assert (embedding.weight[2] == 0).all()
    y.sum().backward()
    assert (embedding.weight.grad[2] == 0).all()
    bound = (6 / (10 + 4)) ** 0.5
    assert embedding.weight.abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("converted", [False, True])
def test_stable_embedding_normalizes(dtype: torch.dtype, converted: bool) -> None:
    embedding = StableEmbedding(10, 64) if converted else StableEmbedding(10, 64, dtype=dtype)
    if converted:
        embedding.to(dtype)
    y = embedding(torch.arange(10))
    assert y.dtype == dtype
    assert embedding.norm.weight.dtype == (dtype if converted else torch.float32)
    rows = embedding.weight.float()
    variance = rows.var(1, unbiased=False, keepdim=True)
    expected = (rows - rows.mean(1, keepdim=True)) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    y.float().square().sum().backward()
    assert embedding.weight.grad.isfinite().all()


@pytest.mark.parametrize("cls", CLASSES)
def test_state_dicts_are_torchs(cls: Any) -> None:
    first, second = cls(10, 4), cls(10, 4)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(second(torch.arange(10)), first(torch.arange(10)))
    assert torch.equal(copy.deepcopy(first).weight, first.weight)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_first_release_names_work(cls: Any) -> None:
    assert list(inspect.signature(cls).parameters)[:9] == [
        *("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type"),
        *("scale_grad_by_freq", "sparse", "_weight", "device"),
    ]
    weight = torch.randn(10, 4)
    assert torch.equal(cls(10, 4, _weight=weight).weight, weight)
