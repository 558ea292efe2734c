"""What the state of a parameter is made of."""

from __future__ import annotations

import pytest
import torch

from bnbx.codebooks import create_dynamic_map, create_linear_map
from bnbx.ops import RULES
from bnbx.optim.state import QuantizationMaps, bits_of, new_state, wrapped


def test_equal_maps_become_one_tensor(device):
    maps = QuantizationMaps()
    device = torch.device(device)
    signed = maps.of_new(8, signed=True, device=device)
    assert maps.of_new(8, signed=True, device=device) is signed
    assert maps.share(create_dynamic_map(signed=True).to(device)) is signed
    assert maps.share(create_linear_map().to(device)) is maps.share(create_linear_map().to(device))
    assert maps.of_new(8, signed=False, device=device) is not signed
    assert len(maps.of_new(4, signed=True, device=device)) == 16


@pytest.mark.parametrize(
    ("bits", "dtype", "layouts"),
    [
        (32, torch.float32, {(): ((), None), (0,): ((0,), None), (3, 100): ((3, 100), None)}),
        (
            8,
            torch.uint8,
            {(): ((), 1), (0,): ((0,), 0), (256,): ((256,), 1), (3, 87): ((3, 87), 2)},
        ),
        (4, torch.uint8, {(): ((1,), 1), (0,): ((0,), 0), (128,): ((64,), 1), (3, 43): ((65,), 2)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", RULES)
def test_new_states_are_zero_and_fit_the_parameter(bits, dtype, layouts, rule, device):
    for shape, (stored, blocks) in layouts.items():
        check_new_state(torch.empty(shape, device=device), bits, dtype, rule, stored, blocks)


def check_new_state(p, bits, dtype, rule, shape, blocks):
    state = new_state(p, bits, RULES[rule], QuantizationMaps())
    assert bits_of(state, p.shape) == bits
    assert state.pop("step") == 0
    for number, (signed, stacked) in enumerate(RULES[rule], 1):
        first = () if stacked == 1 else (stacked,)
        values = state.pop(f"state{number}")
        assert (values.dtype, values.shape) == (dtype, (*first, *shape))
        assert values.device == p.device
        assert not values.any()
        if dtype == torch.uint8:
            absmax = state.pop(f"absmax{number}")
            assert (absmax.dtype, absmax.shape) == (torch.float32, (*first, blocks))
            assert not absmax.any()
            qmap = state.pop(f"qmap{number}")
            assert qmap.shape == (2**bits,)
            assert bool((qmap < 0).any()) == signed
    assert state == {}


def test_only_tensors_are_wrapped():
    value = torch.ones(1)
    state = {"step": 3, "state1": value}
    assert wrapped(state) == {"step": 3, "__bnb_optimizer_quant_state__": {"state1": value}}
    assert wrapped({}) == {}
