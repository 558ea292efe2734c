"""The products with quantized weights, with gradients."""
