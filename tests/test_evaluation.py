"""Perplexity: windows and losses against sums over single tokens."""

from __future__ import annotations

import math
import types

import pytest
import torch

from bnbx.evaluation import ROWS, perplexity

VOCABULARY = 11


class Model(torch.nn.Module):
    """Its prediction depends on the token and on how many are before it in the window."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY))
        self.seen = []

    def forward(self, tokens):
        self.seen.append(tokens.shape[1])
        positions = torch.arange(tokens.shape[1])[:, None]
        logits = self.table[tokens[0]] * (1 + 0.1 * positions)
        return types.SimpleNamespace(logits=logits.unsqueeze(0))


def oracle(model, tokens, window, stride):
    """Return the loss of each token that is predicted, from the window where it comes first."""
    losses = {}
    for begin in range(0, len(tokens), stride):
        piece = tokens[begin : begin + window]
        logits = model(piece.unsqueeze(0)).logits[0].log_softmax(-1)
        for i in range(1, len(piece)):
            losses.setdefault(begin + i, -logits[i - 1, piece[i]].item())
    return losses


@pytest.mark.parametrize("count", [2, 3, 16, 17, 18, 50])
@pytest.mark.parametrize(
    ("window", "stride"), [(16, None), (16, 16), (16, 5), (16, 1), (2, 1), (64, 9)]
)
def test_against_single_tokens(count, window, stride):
    model, tokens = Model(), torch.randint(0, VOCABULARY, (count,))
    found = perplexity(model, tokens, window=window, stride=stride, progress=False)
    losses = oracle(model, tokens, window, stride or window)
    assert found.tokens == len(losses)
    assert found.loss == pytest.approx(sum(losses.values()) / len(losses), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss), rel=1e-12)
    assert f"on {found.tokens:,} tokens" in str(found)


def test_long_windows_in_pieces():
    model, tokens = Model(), torch.randint(0, VOCABULARY, (2 * ROWS + 7,))
    found = perplexity(model, tokens, window=1000, progress=False)
    losses = oracle(model, tokens, 1000, 1000)
    assert found.loss == pytest.approx(sum(losses.values()) / len(losses), rel=1e-5)
    assert model.seen[0] == 2 * ROWS + 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": torch.zeros(1, dtype=torch.int64)}, "tokens: expected a vector of at least 2"),
        ({"tokens": torch.zeros(2, 2, dtype=torch.int64)}, "tokens: expected a vector"),
        ({"window": 1}, "window: expected at least 2"),
        ({"stride": 0}, "stride: expected 1 to 1024"),
        ({"stride": 1025}, "stride: expected 1 to 1024"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    tokens = torch.randint(0, VOCABULARY, (9,))
    with pytest.raises(ValueError, match=message):
        perplexity(Model(), **{"tokens": tokens, **arguments})


def test_logits_that_are_no_numbers():
    model = Model()
    with torch.no_grad():
        model.table.fill_(float("nan"))
    with pytest.raises(ValueError, match="model: expected finite logits, got a loss of nan"):
        perplexity(model, torch.zeros(9, dtype=torch.int64), progress=False)
