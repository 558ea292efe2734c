"""Generation with a static cache compiles into one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bnbx

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    *("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_generate_with_a_static_cache(kind: str) -> None:
    torch._dynamo.reset()
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        vocab_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config).bfloat16().eval()
    bnbx.quantize_(model, kind, progress=False)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    how = transformers.CompileConfig(fullgraph=True, backend=backend, mode=None)
    how._compile_all_devices = True
    ids = torch.randint(0, 128, (1, 5))
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "cache_implementation": "static",
    }
    expected = model.generate(ids, **settings, disable_compile=True)
    assert not graphs
    assert torch.equal(model.generate(ids, **settings, compile_config=how), expected)
    assert len(graphs) == 1
