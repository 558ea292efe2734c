"""More elements than 32 bits count."""

from __future__ import annotations

import os

import pytest
import torch

from bnbx import functional as F

ELEMENTS = 2**31 + 96
#: Bytes of what is written: codes, and the decoded values in float16.
NEEDED = ELEMENTS // 2 + 2 * ELEMENTS


@pytest.mark.skipif(
    bool(os.environ.get("BNBX_REFERENCE")), reason="the reference needs several times the memory"
)
def test_4_bits_beyond_2_to_the_31():
    psutil = pytest.importorskip("psutil")
    if psutil.virtual_memory().available < 1.5 * NEEDED:
        pytest.skip(f"{1.5 * NEEDED:.1e} bytes of memory are not free")
    x = torch.zeros(ELEMENTS, dtype=torch.float16)  # pages that nobody writes to take no memory
    x[-96:] = torch.linspace(-1, 1, 96)
    packed, state = F.quantize_4bit(x, blocksize=4096, quant_type="nf4")
    last, _ = F.quantize_4bit(x[-96:].clone(), blocksize=4096, quant_type="nf4")
    assert packed.numel() == ELEMENTS // 2
    assert torch.equal(packed.view(-1)[-48:], last.view(-1))
    assert state.absmax.tolist()[-2:] == [0, 1]
    assert state.absmax.count_nonzero() == 1
    decoded = F.dequantize_4bit(packed, state)
    assert decoded.shape == x.shape
    assert decoded[:-96].count_nonzero() == 0
    assert (decoded[-96:] - x[-96:]).abs().max() < 0.153  # half the widest gap of NF4
