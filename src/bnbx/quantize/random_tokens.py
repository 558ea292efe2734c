"""Batches for a calibration without a text: token ids drawn at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnbx.ops import error

#: What stands for them in the place of batches.
RANDOM = "random"
#: So few tell the large inputs of a layer from the small ones: more change nothing
#: (docs/quality.md).
SEQUENCES, LENGTH = 4, 256
#: Ends of the names under which a configuration has ids with a meaning, as of pictures.
_SPECIAL = ("_token_id", "_token_index")


def random_tokens(model: Any) -> list[Tensor]:
    """Return sequences of the ids of a language model's tokens, the same at each call.

    Parameters
    ----------
    model
        A model as transformers has them, whose first argument are token ids. Ids that have a
        meaning to it, as the beginning of a text or the place of a picture, are left out.

    Raises
    ------
    ValueError
        If the model has no table of token embeddings, or is an encoder with a decoder.
    """
    find = getattr(model, "get_input_embeddings", None)
    table = find() if find is not None else None
    config = getattr(model, "config", None)
    if not isinstance(table, nn.Embedding) or getattr(config, "is_encoder_decoder", False):
        expected = "batches, because the model is no language model that reads tokens alone"
        raise error("calibration", expected, repr(RANDOM))
    usable = torch.ones(table.num_embeddings)
    for name, value in config.to_dict().items() if config is not None else ():
        if name.endswith(_SPECIAL):
            special = value if isinstance(value, list | tuple) else [value]
            usable[[i for i in special if isinstance(i, int) and 0 <= i < len(usable)]] = 0
    generator = torch.Generator().manual_seed(0)
    shape = (SEQUENCES, longest_window(model, LENGTH))
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    ids = usable.nonzero().flatten()
    chosen = ids[(drawn * len(ids)).long()].to(table.weight.device)
    return list(chosen.split(1))


def longest_window(model: Any, most: int) -> int:
    """Return how many tokens, up to ``most``, a model of transformers is made to read at a time."""
    config = getattr(model, "config", None)
    if config is None:
        return most
    made_for = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if made_for is None else min(most, made_for)
