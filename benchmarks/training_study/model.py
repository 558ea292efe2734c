"""A small decoder-only transformer over bytes, in plain torch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Tokens are bytes.
VOCABULARY = 256


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size of a model and of the windows that it reads: 3 million parameters as it stands."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    length: int = 128


class Block(nn.Module):
    """Attention to what came before, then two linear layers of each position; both are added."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape ``(batch, length, width)`` of its input."""
        x = x + self._attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))

    def _attention(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        q, k = (rotated(F.rms_norm(t, t.shape[-1:])).to(v.dtype) for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(mixed.transpose(1, 2).reshape(batch, length, width))


def rotated(x: Tensor) -> Tensor:
    """Return queries or keys turned by their positions (Su et al. 2021, RoFormer, section 3.4)."""
    length, width = x.shape[-2:]
    rates = 10_000.0 ** -(torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length), rates)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class LanguageModel(nn.Module):
    """Bytes in, logits of the next byte out; the output layer is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # What a block adds is smaller by the root of the number of such sums, as in GPT-2.
                adds = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * shape.layers) ** 0.5 if adds else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, ``(batch, length, 256)``."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    def loss(self, windows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the mean cross-entropy of the next byte in nats; products are in ``dtype``."""
        windows = windows.long()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = self(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
