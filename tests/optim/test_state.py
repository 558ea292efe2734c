"""What the state of a parameter is made of."""

from __future__ import annotations

import pytest
import torch

from bnbx.codebooks import create_dynamic_map, create_linear_map
from bnbx.ops import RULES
from bnbx.optim.state import QuantizationMaps, new_state, wrapped


def test_equal_maps_become_one_tensor(device):
    maps = QuantizationMaps()
    device = torch.device(device)
    signed = maps.dynamic(signed=True, device=device)
    assert maps.dynamic(signed=True, device=device) is signed
    assert maps.share(create_dynamic_map(signed=True).to(device)) is signed
    assert maps.share(create_linear_map().to(device)) is maps.share(create_linear_map().to(device))
    assert maps.dynamic(signed=False, device=device) is not signed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("shape", "blocks"), [((), 1), ((0,), 0), ((256,), 1), ((3, 100), 2)])
def test_new_states_are_zero_and_fit_the_parameter(dtype, rule, shape, blocks, device):
    p = torch.empty(shape, device=device, dtype=torch.bfloat16)
    state = new_state(p, dtype, RULES[rule], QuantizationMaps())
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
            assert bool((qmap < 0).any()) == signed
    assert state == {}


def test_only_tensors_are_wrapped():
    value = torch.ones(1)
    state = {"step": 3, "state1": value}
    assert wrapped(state) == {"step": 3, "__bnb_optimizer_quant_state__": {"state1": value}}
    assert wrapped({}) == {}
