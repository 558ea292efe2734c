"""A small language model trained with 32-bit, 8-bit and 4-bit optimizer states."""
