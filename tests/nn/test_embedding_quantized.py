"""Embeddings with quantized weights: the rows that are looked up, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bnbx.nn import Embedding4bit, Embedding8bit, EmbeddingFP4, EmbeddingNF4, LinearNF4

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dim", [64, 192, 32, 33, 100, 1])
@pytest.mark.parametrize("blocksize", [32, 64, 128])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("storage", [torch.uint8, torch.float32])
def test_rows_of_four_bits(
    storage: torch.dtype, quant_type: str, nested: bool, blocksize: int, dim: int, device: str
) -> None:
    embedding = Embedding4bit(
        *(301, dim),
        quant_type=quant_type,
        quant_storage=storage,
        blocksize=blocksize,
        compress_statistics=nested,
    ).to(device)
    table = embedding.weight.dequantize()
    for shape in ((), (1,), (3, 4), (0,)):
        ids = torch.randint(0, 301, shape, device=device)
        torch.testing.assert_close(embedding(ids), table[ids], rtol=1e-6, atol=1e-7)
    last = torch.tensor([300, 0], device=device, dtype=torch.int32)
    torch.testing.assert_close(embedding(last), table[[300, 0]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", [EmbeddingNF4, EmbeddingFP4, Embedding8bit])
@pytest.mark.parametrize("dim", [64, 48])
def test_rows_have_the_dtype_of_the_embedding(
    dim: int, cls: Any, dtype: torch.dtype, device: str
) -> None:
    embedding = cls(20, dim, dtype=dtype).to(device)
    assert embedding.dtype == dtype
    ids = torch.arange(20, device=device)
    assert embedding(ids).dtype == dtype
    assert torch.equal(embedding(ids), embedding.weight.dequantize().to(dtype))


def test_rows_of_eight_bits(device: str) -> None:
    embedding = Embedding8bit(20, 7)
    weight = embedding.weight.detach().clone().to(device)
    embedding.to(device)
    for shape in ((), (3, 4), (0,)):
        ids = torch.randint(0, 20, shape, device=device)
        assert torch.equal(embedding(ids), embedding.weight.dequantize()[ids])
    error = (embedding(torch.arange(20, device=device)) - weight).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 254 + 1e-6).all()


@pytest.mark.parametrize("cls", [EmbeddingNF4, EmbeddingFP4, Embedding8bit])
@pytest.mark.parametrize("dim", [64, 33])
def test_the_row_for_padding_stays_zero(dim: int, cls: Any) -> None:
    # A block of 64 reaches into the neighbours of a row of 33: only their scales.
    embedding = cls(10, dim, padding_idx=3).to("cpu")
    assert embedding.padding_idx == 3
    assert (embedding(torch.tensor([3])) == 0).all()
    assert (embedding(torch.tensor([2, 4])) != 0).any(1).all()


@pytest.mark.parametrize("cls", [EmbeddingNF4, Embedding8bit])
@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_out_of_range_is_an_error(index: int, cls: Any) -> None:
    for dim in (64, 33, 1):
        with pytest.raises((IndexError, RuntimeError)):
            cls(10, dim).to("cpu")(torch.tensor([index]))


def test_an_embedding_shares_its_weight_with_the_output_layer() -> None:
    embedding = EmbeddingNF4(40, 64)
    head = LinearNF4(64, 40, bias=False)
    head.weight = embedding.weight
    model = torch.nn.ModuleDict({"embedding": embedding, "head": head}).to("cpu").half()
    assert head.weight is embedding.weight
    assert head.quant_state is embedding.quant_state
    x = torch.randn(3, 64)
    table = embedding(torch.arange(40))
    torch.testing.assert_close(head(x), x @ table.t(), rtol=1e-5, atol=1e-5)
    other = torch.nn.ModuleDict(
        {"embedding": EmbeddingNF4(40, 64), "head": LinearNF4(64, 40, False)}
    )
    other["head"].weight = other["embedding"].weight
    other.load_state_dict(model.state_dict())
    assert other["head"].weight is other["embedding"].weight
    assert torch.equal(other["head"](x), head(x))


@pytest.mark.parametrize("cls", [EmbeddingNF4, EmbeddingFP4, Embedding8bit])
def test_a_full_embedding_loads(cls: Any) -> None:
    full = torch.nn.Embedding(20, 64)
    embedding = cls(20, 64)
    embedding.load_state_dict(full.state_dict())
    ids = torch.arange(20)
    error = embedding.to("cpu")(ids) - full(ids)
    assert error.norm() < 0.15 * full.weight.norm()
