"""Small checkpoints for the tests: files made byte by byte, and models of transformers."""

from __future__ import annotations

import json

import torch
import transformers

VOCABULARY = 96


def raw(header, data=b"", length=None):
    """Return the bytes of a safetensors file, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def llama(**changes):
    settings = {
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **changes}))


def gpt2():
    settings = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    settings |= {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))


def mixtral():
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "vocab_size": VOCABULARY,
    }
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**settings))


def save(model, path, dtype=torch.bfloat16, **options):
    """Save a model with random weights and biases; return it."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.to(dtype).eval().save_pretrained(path, **options)
    return model
