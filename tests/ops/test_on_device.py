"""That the tests of the operations reach the kernels of a device; the CPU stands for it here."""

from __future__ import annotations

import copy

import pytest
import torch

from bnbx.conformance.samples import arguments
from bnbx.ops import CONTRACTS

from .checks import run, same
from .on_device import OnDevice


def tensors(given):
    values = (value if isinstance(value, list) else [value] for value in given.values())
    return tuple(entry for value in values for entry in value if isinstance(entry, torch.Tensor))


@pytest.mark.parametrize("name", CONTRACTS)
def test_results_and_what_is_written_come_back(name):
    given = arguments(name)
    other = copy.deepcopy(given)
    expected = run(name, **given)
    with OnDevice("cpu") as mode:
        found = run(name, **other)
    assert mode.calls == 1
    same((found,), (expected,))
    same(tensors(other), tensors(given))


def test_copies_keep_strides_alignment_and_shared_memory():
    memory = torch.arange(20.0)
    first, second = memory[1:7].view(2, 3).t(), memory[1:4]
    mode, copies = OnDevice("cpu"), {}
    one, two = (mode._copy(tensor, copies) for tensor in (first, second))
    same((one, two), (first, second))
    assert one.stride() == first.stride()
    assert one.storage_offset() == 1
    assert one.data_ptr() == two.data_ptr() != first.data_ptr()
