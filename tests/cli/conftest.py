"""A small language model with its tokenizer, on disk."""

from __future__ import annotations

import pytest
import tokenizers
import torch
import transformers

WORDS = [f"w{i}" for i in range(96)]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """Return the directory of a small Llama in bfloat16."""
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(WORDS),
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "llama"
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)})
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def text_path(tmp_path_factory):
    """Return a file with 200 words that the tokenizer knows."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    numbers = torch.randint(0, len(WORDS), (200,), generator=torch.Generator().manual_seed(0))
    path.write_text(" ".join(WORDS[i] for i in numbers.tolist()), encoding="utf-8")
    return path
