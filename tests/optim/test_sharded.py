"""Parameters of FSDP2: DTensors, of which a process updates its shard."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from bnbx.optim import LAMB, LAMB8bit

from .families import every_maker


@pytest.fixture
def mesh(device):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh(torch.device(device).type, (2,))
    dist.destroy_process_group()


@every_maker
def test_a_shard_is_updated_like_a_parameter_of_its_own(cls, mesh, device):
    shard = torch.nn.Parameter(torch.randn(50, 30, device=device))
    whole = torch.nn.Parameter(DTensor.from_local(shard.detach().clone(), mesh, [Shard(0)]))
    assert whole.shape == (100, 30)
    optimizers = [cls([p], lr=0.1, min_8bit_size=1000, max_unorm=0.0) for p in (shard, whole)]
    for _ in range(3):
        shard.grad = torch.randn_like(shard)
        whole.grad = DTensor.from_local(shard.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    assert torch.equal(whole.to_local(), shard)
    assert optimizers[1].state[whole]["state1"].shape[-2:] in {(50, 30), (750,)}


@pytest.mark.parametrize("cls", [LAMB8bit, LAMB])
def test_a_shard_cannot_be_bounded_by_the_norm_of_the_whole(cls, mesh, device):
    local = torch.randn(50, 30, device=device)
    p = torch.nn.Parameter(DTensor.from_local(local.clone(), mesh, [Shard(0)]))
    p.grad = DTensor.from_local(torch.ones_like(local), mesh, [Shard(0)])
    with pytest.raises(ValueError, match=r"^max_unorm of param_groups\[0\]\['params'\]\[0\]"):
        cls([p], max_unorm=0.5).step()
    assert torch.equal(p.to_local(), local)
