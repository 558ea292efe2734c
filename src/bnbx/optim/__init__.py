"""Optimizers with states of 4, 8 or 32 bits, and overrides of their settings by parameter."""

from __future__ import annotations

from bnbx.optim.adagrad import Adagrad, Adagrad8bit, Adagrad32bit
from bnbx.optim.adam import (
    Adam,
    Adam4bit,
    Adam8bit,
    Adam32bit,
    PagedAdam,
    PagedAdam4bit,
    PagedAdam8bit,
    PagedAdam32bit,
)
from bnbx.optim.adamw import (
    AdamW,
    AdamW4bit,
    AdamW8bit,
    AdamW32bit,
    PagedAdamW,
    PagedAdamW4bit,
    PagedAdamW8bit,
    PagedAdamW32bit,
)
from bnbx.optim.ademamix import (
    AdEMAMix,
    AdEMAMix8bit,
    AdEMAMix32bit,
    PagedAdEMAMix,
    PagedAdEMAMix8bit,
    PagedAdEMAMix32bit,
)
from bnbx.optim.flat import flatten_state_dict, unflatten_state_dict
from bnbx.optim.lamb import LAMB, LAMB8bit, LAMB32bit
from bnbx.optim.lars import LARS, LARS8bit, LARS32bit, PytorchLARS
from bnbx.optim.lion import Lion, Lion8bit, Lion32bit, PagedLion, PagedLion8bit, PagedLion32bit
from bnbx.optim.manager import GlobalOptimManager
from bnbx.optim.muon import Muon, Muon8bit, Muon32bit
from bnbx.optim.paging import PagedMemory
from bnbx.optim.rmsprop import RMSprop, RMSprop8bit, RMSprop32bit
from bnbx.optim.sgd import SGD, SGD8bit, SGD32bit

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdEMAMix8bit",
    "AdEMAMix32bit",
    "Adagrad",
    "Adagrad8bit",
    "Adagrad32bit",
    "Adam",
    "Adam4bit",
    "Adam8bit",
    "Adam32bit",
    "AdamW",
    "AdamW4bit",
    "AdamW8bit",
    "AdamW32bit",
    "GlobalOptimManager",
    "LAMB8bit",
    "LAMB32bit",
    "LARS8bit",
    "LARS32bit",
    "Lion",
    "Lion8bit",
    "Lion32bit",
    "Muon",
    "Muon8bit",
    "Muon32bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix8bit",
    "PagedAdEMAMix32bit",
    "PagedAdam",
    "PagedAdam4bit",
    "PagedAdam8bit",
    "PagedAdam32bit",
    "PagedAdamW",
    "PagedAdamW4bit",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "PagedLion",
    "PagedLion8bit",
    "PagedLion32bit",
    "PagedMemory",
    "PytorchLARS",
    "RMSprop",
    "RMSprop8bit",
    "RMSprop32bit",
    "SGD8bit",
    "SGD32bit",
    "flatten_state_dict",
    "unflatten_state_dict",
]
