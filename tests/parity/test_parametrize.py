"""Parameters in 4 bits against bitsandbytes: the same entries, and checkpoints both ways.

On a CPU bitsandbytes decodes wrongly if the last dimension is above the blocksize and no multiple
of it.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from bnbx.nn import parametrize

pytest.importorskip("bitsandbytes")
theirs = pytest.importorskip("bitsandbytes.nn.parametrize")

NAMES = ["replace_parameter_4bit", "replace_parameter_4bit_prequantized"]


def module(weight):
    made = torch.nn.Module()
    made.gate_up_proj = torch.nn.Parameter(weight.clone())
    return made


def both(weight, **settings):
    a, b = module(weight), module(weight)
    theirs.replace_parameter_4bit(a, "gate_up_proj", **settings)
    parametrize.replace_parameter_4bit(b, "gate_up_proj", **settings)
    return a, b


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """What is added to a function can be given by keyword only."""
    parameters = [
        [
            (p.name, p.default)
            for p in inspect.signature(getattr(of, name)).parameters.values()
            if p.kind is not p.KEYWORD_ONLY
        ]
        for of in (theirs, parametrize)
    ]
    assert parameters[0] == parameters[1]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_the_same_entries_and_values(nested, quant_type):
    # 3 x 10 x 33 elements: blocks that belong to two matrices.
    for shape in ((2, 32, 128), (3, 10, 33)):
        weight = torch.randn(shape, dtype=torch.bfloat16)
        a, b = both(weight, compress_statistics=nested, quant_type=quant_type)
        assert torch.equal(a.gate_up_proj, b.gate_up_proj)
        saved, ours = a.state_dict(), b.state_dict()
        assert saved.keys() == ours.keys()
        for name, value in saved.items():
            if "quant_state" not in name:  # JSON, of which the order does not matter
                torch.testing.assert_close(ours[name].view(-1), value.view(-1), rtol=0, atol=1e-6)


def test_checkpoints_cross_both_ways():
    weight = torch.randn(2, 32, 128)
    a, b = both(weight, compress_statistics=True)
    for source, replace in (
        (a, parametrize.replace_parameter_4bit_prequantized),
        (b, theirs.replace_parameter_4bit_prequantized),
    ):
        entries = source.state_dict()
        made = torch.nn.Module()
        codes = entries.pop("gate_up_proj")
        made.gate_up_proj = torch.nn.Parameter(codes, requires_grad=False)
        replace(made, "gate_up_proj", entries, torch.device("cpu"))
        assert torch.equal(made.gate_up_proj, a.gate_up_proj)
    fresh = module(torch.randn(2, 32, 128))
    parametrize.replace_parameter_4bit(fresh, "gate_up_proj")
    fresh.load_state_dict(a.state_dict())
    assert torch.equal(fresh.gate_up_proj, a.gate_up_proj)
