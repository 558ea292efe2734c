"""k-bit quantization for PyTorch: 8-bit optimizers, LLM.int8() and NF4/FP4 QLoRA."""
