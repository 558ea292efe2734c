"""LLM.int8(): the linear layers of a model in int8, columns with large activations in 16 bit."""

import torch

import bnbx as bnb

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512)
).bfloat16()
x = torch.randn(16, 512, dtype=torch.bfloat16)
x[:, 7] *= 30  # an outlier feature, as large language models have them
with torch.inference_mode():
    expected = model(x)
    print(bnb.quantize_(model, "int8", threshold=6.0))
    error = (model(x) - expected).norm() / expected.norm()
print(f"relative error of the output with threshold 6: {error:.4f}")

# One layer by hand: its weight is quantized when it is moved to a device.
linear = torch.nn.Linear(512, 256)
layer = bnb.nn.Linear8bitLt(512, 256, has_fp16_weights=False, threshold=6.0)
layer.load_state_dict(linear.state_dict())
layer = layer.to("cpu")
print(f"weight: {layer.weight.dtype}, scales of its rows: {tuple(layer.weight.SCB.shape)}")
