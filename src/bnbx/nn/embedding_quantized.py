"""Embeddings with a quantized weight: Embedding4bit, EmbeddingNF4, EmbeddingFP4, Embedding8bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnbx.functional import int8_vectorwise_dequant
from bnbx.nn.int8params import Int8Params
from bnbx.nn.module4bit import Module4bit
from bnbx.nn.module8bit import Module8bit
from bnbx.nn.params4bit import Params4bit

if TYPE_CHECKING:
    from bnbx.functional import QuantState

_lookup = torch.nn.functional.embedding


class Embedding4bit(Module4bit, torch.nn.Embedding):
    """``torch.nn.Embedding`` with a weight in 4 bits, quantized when it is moved to a device.

    Only the rows that are looked up are dequantized.

    Parameters
    ----------
    num_embeddings, embedding_dim
        Rows and columns. A row that is no multiple of the blocksize works, more slowly.
    dtype
        Dtype of the weight before it is quantized, and of the rows that come back.
    quant_type
        ``"fp4"`` or ``"nf4"``.
    quant_storage
        The dtype whose elements hold the codes: uint8, bfloat16, float16 or float32.
    device
        Where the weight is made; that does not quantize it.
    padding_idx
        As for ``torch.nn.Embedding``: this row of a new weight is zero, and stays zero.
    blocksize
        Elements that share a scale: 32, 64, 128, ..., 4096.
    compress_statistics
        Whether the scales are quantized too (double quantization).

    Raises
    ------
    RuntimeError
        In forward, if the weight is not quantized yet.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
        padding_idx: int | None = None,
        blocksize: int = 64,
        compress_statistics: bool = False,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.dtype = self.weight.dtype
        self.quant_state = None
        self.weight = Params4bit(
            self.weight.data,
            requires_grad=False,
            blocksize=blocksize,
            compress_statistics=compress_statistics,
            quant_type=quant_type,
            quant_storage=quant_storage,
            module=self,
        )
        self.quant_storage = quant_storage

    def _weight_shape(self) -> tuple[int, int]:
        return self.num_embeddings, self.embedding_dim

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        packed, state = self._packed_weight()
        codes = packed.view(-1).view(torch.uint8)
        if self.embedding_dim % state.blocksize:
            return self._rows_of_elements(codes, state, input).to(self.dtype)
        return self._rows_of_blocks(codes, state, input).to(self.dtype)

    def _rows_of_blocks(self, codes: Tensor, state: QuantState, ids: Tensor) -> Tensor:
        """Dequantize rows that consist of whole blocks."""
        per_row = self.embedding_dim // state.blocksize
        blocks = ids.unsqueeze(-1) * per_row + torch.arange(per_row, device=ids.device)
        size = self.num_embeddings * self.embedding_dim // 2
        rows: Tensor = torch.ops.bnbx.dequantize_4bit.default(
            _lookup(ids, codes[:size].view(self.num_embeddings, -1)),
            scales_of_blocks(state, blocks).view(-1),
            state.blocksize,
            state.quant_type,
            (*ids.shape, self.embedding_dim),
            state.dtype,
        )
        return rows

    def _rows_of_elements(self, codes: Tensor, state: QuantState, ids: Tensor) -> Tensor:
        """Dequantize rows that begin anywhere in a block, even in the middle of a byte."""
        # For its check of the indices alone; those of the elements below could be valid.
        _lookup(ids, codes.new_zeros(1, 1).expand(self.num_embeddings, 1))
        columns = torch.arange(self.embedding_dim, device=ids.device)
        elements = ids.unsqueeze(-1) * self.embedding_dim + columns
        pairs = codes[elements // 2]
        nibbles = torch.where(elements % 2 == 0, pairs >> 4, pairs & 15)
        values: Tensor = state.code[nibbles.int()]
        return values * scales_of_blocks(state, elements // state.blocksize)


def scales_of_blocks(state: QuantState, blocks: Tensor) -> Tensor:
    """Return the float32 scales of the blocks with these indices, in their shape."""
    scales = state.absmax[blocks]
    if state.nested:
        outer = state.state2
        decoded = outer.code[scales.int()] * outer.absmax[blocks // outer.blocksize]
        scales = decoded + state.offset
    return scales


class EmbeddingFP4(Embedding4bit):
    """``Embedding4bit`` with ``quant_type="fp4"``."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
        padding_idx: int | None = None,
        blocksize: int = 64,
        compress_statistics: bool = False,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            dtype,
            "fp4",
            quant_storage,
            device,
            padding_idx,
            blocksize,
            compress_statistics,
        )


class EmbeddingNF4(Embedding4bit):
    """``Embedding4bit`` with ``quant_type="nf4"``."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
        padding_idx: int | None = None,
        blocksize: int = 64,
        compress_statistics: bool = False,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            dtype,
            "nf4",
            quant_storage,
            device,
            padding_idx,
            blocksize,
            compress_statistics,
        )


class Embedding8bit(Module8bit, torch.nn.Embedding):
    """``torch.nn.Embedding`` with a weight in int8, quantized when it is moved to a device.

    Only the rows that are looked up are dequantized.

    Parameters
    ----------
    num_embeddings, embedding_dim
        Rows and columns; every row has its own scale.
    device
        Where the weight is made; that does not quantize it.
    dtype
        Dtype of the weight before it is quantized, and of the rows that come back.
    padding_idx
        As for ``torch.nn.Embedding``: this row of a new weight is zero, and stays zero.

    Raises
    ------
    RuntimeError
        In forward, if the weight is not quantized yet.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.dtype = self.weight.dtype
        self._kept_scales: Tensor | None = None
        self.weight = Int8Params(self.weight.data, requires_grad=False, has_fp16_weights=False)

    def _weight_shape(self) -> tuple[int, int]:
        return self.num_embeddings, self.embedding_dim

    def _adopt_weight(self) -> None:
        weight = self._parameters.get("weight")
        if isinstance(weight, Int8Params):
            self._kept_scales = weight.SCB

    def _scales(self) -> Tensor | None:
        weight = self._parameter("weight")
        return weight.SCB if isinstance(weight, Int8Params) else self._kept_scales

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        weight, scales = self._parameter("weight"), self._scales()
        if scales is None:
            raise self._not_quantized()
        codes = weight.plain() if isinstance(weight, Int8Params) else weight
        rows = _lookup(input, codes)
        return int8_vectorwise_dequant(rows, scales[input].view(-1)).to(self.dtype)
