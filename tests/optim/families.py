"""What the tests of the optimizers run over: every family, made with arguments that it takes."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch

from bnbx import optim
from bnbx.conformance.samples import unpacked
from bnbx.ops import OPTIMIZER_BLOCKSIZES

FAMILIES = ("Adam", "AdamW", "AdEMAMix", "Lion", "SGD", "RMSprop", "Adagrad", "LAMB", "LARS")
PAGED = ("Adam", "AdamW", "AdEMAMix", "Lion")
#: Every name that bitsandbytes has, but PytorchLARS, which is not one of a family.
NAMES = [f"{name}{bits}" for name in FAMILIES for bits in ("", "8bit", "32bit")]
NAMES += [f"Paged{name}{bits}" for name in PAGED for bits in ("", "8bit", "32bit")]
#: Those with names of ours, which bitsandbytes has not.
FAMILIES_4BIT = ("Adam", "AdamW")
EVERY_NAME = [
    *NAMES,
    *(f"{paged}{name}4bit" for name in FAMILIES_4BIT for paged in ("", "Paged")),
]

NEEDED = {"SGD": {"lr": 1e-2, "momentum": 0.9}, "LARS": {"lr": 1e-2, "momentum": 0.9}}
#: The rules in float64; "adam" where it is not one of these.
RULE_OF = {
    "AdEMAMix": "ademamix",
    "Lion": "lion",
    "SGD": "momentum",
    "RMSprop": "rmsprop",
    "Adagrad": "adagrad",
    "LARS": "momentum",
}


def family_of(name):
    return re.fullmatch(r"(Paged)?(.*?)(\d+bit)?", name)[2]


def bits_of(name):
    """Return the bits that a name fixes, or those that are the default."""
    return int(re.search(r"(\d*)(bit)?$", name)[1] or 32)


def make(name, params, **settings):
    """Return an optimizer of that name."""
    return getattr(optim, name)(params, **{**NEEDED.get(family_of(name), {}), **settings})


#: For tests of what does not depend on the family: each family in both widths, called as a class.
MAKERS = [
    pytest.param(functools.partial(make, f"{name}{bits}"), id=f"{name}{bits}")
    for name in FAMILIES
    for bits in ("8bit", "32bit")
]
MAKERS += [
    pytest.param(functools.partial(make, f"{name}4bit"), id=f"{name}4bit") for name in FAMILIES_4BIT
]
every_maker = pytest.mark.parametrize("cls", MAKERS)


def constants(optimizer, number=0):
    """Return the constants of an optimizer's rule as the rules in float64 take them."""
    group = {**vars(optimizer.args), **optimizer.param_groups[number]}
    betas = dict(zip(("beta1", "beta2", "beta3"), group["betas"], strict=False))
    return {**group, **betas, "gnorm_scale": -1.0 if group["maximize"] else 1.0}


def states_of(state, shape):
    """Return what the state tensors of a parameter of that shape mean, in float32."""
    values = []
    for number in (1, 2):
        if f"state{number}" in state:
            codes = state[f"state{number}"]
            if codes.dtype == torch.float32:
                values.append(codes.clone())
                continue
            scales = state[f"absmax{number}"]
            qmap = state[f"qmap{number}"]
            bits = 4 if len(qmap) == 16 else 8
            if bits == 4:
                codes = unpacked(codes, math.prod(shape)).view(shape)
            rows = codes.reshape(scales.shape[0] if scales.dim() > 1 else 1, -1)
            each = scales.view(len(rows), -1).repeat_interleave(OPTIMIZER_BLOCKSIZES[bits], dim=1)
            decoded = qmap[rows.int()] * each[:, : rows.shape[1]]
            values.append(decoded.view(codes.shape))
    return values


def parameters(shapes, dtype=torch.float32, device="cpu"):
    return [torch.nn.Parameter(torch.randn(s, device=device).to(dtype)) for s in shapes]


def set_gradients(params):
    for p in params:
        p.grad = (torch.randn(p.shape, device=p.device) * 10 ** torch.randn(())).to(p.dtype)
