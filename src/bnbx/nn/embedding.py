"""Embeddings with full weights, for training with 8-bit optimizers: Embedding, StableEmbedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnbx.optim import GlobalOptimManager


class Embedding(torch.nn.Embedding):
    """``torch.nn.Embedding`` whose weight gets 32-bit states from the optimizers of bnbx.

    A new weight has Xavier uniform values.

    Parameters
    ----------
    num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        As for ``torch.nn.Embedding``.
    _weight
        The weight; by default a new one.
    device, dtype
        Of the new weight.

    References
    ----------
    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.3.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            device=device,
            dtype=dtype,
        )
        self._ask_for_32bit_states()

    def _ask_for_32bit_states(self) -> None:
        manager = GlobalOptimManager.get_instance()
        manager.register_module_override(self, "weight", {"optim_bits": 32})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._ask_for_32bit_states()  # The manager does not know the copy yet.

    def reset_parameters(self) -> None:
        """Fill the weight with Xavier uniform values, and the row of ``padding_idx`` with zeros."""
        torch.nn.init.xavier_uniform_(self.weight)
        self._fill_padding_idx_with_zero()


class StableEmbedding(Embedding):
    """``Embedding`` followed by a layer normalization, which keeps large updates from diverging.

    The normalization is computed in the dtype of its own parameters, float32 by default; the result
    has the embedding's dtype.

    Attributes
    ----------
    norm
        The ``torch.nn.LayerNorm``.

    References
    ----------
    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.3.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            device,
            dtype,
        )
        self.norm = torch.nn.LayerNorm(embedding_dim, device=device)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        rows = super().forward(input)
        normalized: Tensor = self.norm(rows.to(self.norm.weight.dtype))
        return normalized.to(self.weight.dtype)
