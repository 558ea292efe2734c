"""QuantState dicts load both ways between bnbx and bitsandbytes."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from bnbx import functional as F

bnb = pytest.importorskip("bitsandbytes")
BF = bnb.functional


def equal(mine: object, theirs: object) -> bool:
    return torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dicts_are_the_same_and_load_both_ways(
    nested: bool, packed: bool, quant_type: str, dtype: torch.dtype
) -> None:
    A = torch.randn(40, 500).to(dtype)
    kwargs = {"compress_statistics": nested, "quant_type": quant_type, "blocksize": 128}
    codes, mine = F.quantize_4bit(A, **kwargs)
    _, theirs = BF.quantize_4bit(A, **kwargs)
    mine.absmax = (
        theirs.absmax.clone()
    )  # nested scales may differ where bitsandbytes rounds wrongly
    my_dict, their_dict = mine.as_dict(packed=packed), theirs.as_dict(packed=packed)
    assert list(my_dict) == list(their_dict)
    for key, value in their_dict.items():
        assert equal(my_dict[key], value), key

    read = F.QuantState.from_dict(their_dict, "cpu")
    assert read == mine
    read_by_them = BF.QuantState.from_dict(my_dict, torch.device("cpu"))
    assert read_by_them == theirs
    assert torch.equal(F.dequantize_4bit(codes, read), BF.dequantize_4bit(codes, read_by_them))


@pytest.mark.parametrize("nested", [False, True])
def test_the_same_to_who_looks_inside(nested: bool) -> None:
    A = torch.randn(40, 500)
    _, mine = F.quantize_4bit(A, compress_statistics=nested)
    codes, theirs = BF.quantize_4bit(A, compress_statistics=nested)
    assert vars(mine).keys() == vars(theirs).keys()
    for name in ("shape", "dtype", "blocksize", "quant_type", "nested"):
        assert getattr(mine, name) == getattr(theirs, name)
    for name in ("code", "offset"):
        assert equal(getattr(mine, name), getattr(theirs, name))
    for i in (1, 2, 3, 5):
        assert mine[i] == theirs[i]
    assert type(mine[4]) is type(theirs[4])
    assert torch.equal(mine.bitsandbytes__fp4, theirs.bitsandbytes__fp4)
    # What one has pickled, the other reads.
    again = F.QuantState.__new__(F.QuantState)
    vars(again).update(pickle.loads(pickle.dumps(vars(theirs))))
    assert torch.equal(F.dequantize_4bit(codes, again), BF.dequantize_4bit(codes, theirs))
