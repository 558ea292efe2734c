"""Layers and parameters in one module, where programs written for bitsandbytes look for them."""

from __future__ import annotations

from bnbx.nn.embedding import Embedding, StableEmbedding
from bnbx.nn.embedding_quantized import Embedding4bit, Embedding8bit, EmbeddingFP4, EmbeddingNF4
from bnbx.nn.int8params import Int8Params
from bnbx.nn.linear4bit import Linear4bit, LinearFP4, LinearNF4
from bnbx.nn.linear8bit import Linear8bitLt
from bnbx.nn.outlier_aware import OutlierAwareLinear
from bnbx.nn.params4bit import Params4bit

__all__ = [
    "Embedding",
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "Int8Params",
    "Linear4bit",
    "Linear8bitLt",
    "LinearFP4",
    "LinearNF4",
    "OutlierAwareLinear",
    "Params4bit",
    "StableEmbedding",
]
