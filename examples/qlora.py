"""QLoRA: a frozen NF4 model, LoRA adapters, an 8-bit optimizer; with transformers and peft."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import bnbx as bnb

# A random model stands in for LlamaForCausalLM.from_pretrained(...).
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
)
model = LlamaForCausalLM(config).bfloat16()
print(bnb.quantize_(model, "nf4", skip="lm_head", compute_dtype=torch.bfloat16))

model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
adapters = [p for p in model.parameters() if p.requires_grad]
optimizer = bnb.optim.AdamW8bit(adapters, lr=1e-3)
tokens = torch.tensor([list(b"The quick brown fox jumps over the lazy dog. " * 4)])
for step in range(20):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step:2}  loss {loss.item():.3f}")

# Adapters are added to weights of 16 bits, not to codes: dequantize, then merge.
bnb.dequantize_(model)
model = model.merge_and_unload()
print(f"merged       {model(input_ids=tokens, labels=tokens).loss.item():.3f}")
