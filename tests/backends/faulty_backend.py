# ruff: noqa: ARG002 (the parameters are those of the operations)
"""A backend whose kernels are wrong in different ways, on the device in Python."""

from __future__ import annotations

import torch

from bnbx.backends import reference, register

from .python_device import NAME


class Faulty:
    def quantize_4bit(self, A, blocksize, quant_type, quant_storage):
        """One code of the last of many blocks is another one."""
        packed, absmax = reference.quantize_4bit(A, blocksize, quant_type, quant_storage)
        if absmax.numel() > 3:
            packed.view(torch.uint8).view(-1)[-1:] ^= 16
        return packed, absmax

    def gemm_4bit(self, A, *others):
        """The sums are rounded once too often."""
        return reference.gemm_4bit(A, *others).bfloat16().to(A.dtype)

    def int8_linear_matmul(self, A, B):
        msg = "the kernel of int8_linear_matmul cannot be launched"
        raise RuntimeError(msg)

    def int8_vectorwise_dequant(self, A, stats):
        """The scales are changed."""
        out = reference.int8_vectorwise_dequant(A, stats)
        stats.mul_(2.0)
        return out

    def dequantize_blockwise(self, A, absmax, code, blocksize, dtype):
        """Another dtype than the one that is asked for."""
        return reference.dequantize_blockwise(A, absmax, code, blocksize, torch.float32)

    def optimizer_update_32bit(self, optimizer_name, g, p, *others, **named):
        """The states of Lion stay as they are."""
        state1 = [state.clone() for state in others[0]]
        reference.optimizer_update_32bit(optimizer_name, g, p, *others, **named)
        if optimizer_name == "lion":
            for state, old in zip(others[0], state1, strict=True):
                state.copy_(old)


register(NAME, Faulty())
