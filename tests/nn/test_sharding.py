"""FSDP2 on two processes: shards, eval and training passes, saving and loading."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

import pytest
import torch

from bnbx.nn import Linear8bitLt, LinearNF4

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch is built without distributed"
)


def model_of(storage: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    # 192 * 50 codes do not fall apart at the end of a block.
    model = torch.nn.Sequential(
        LinearNF4(192, 50, quant_storage=storage),
        torch.nn.ReLU(),
        LinearNF4(50, 64, quant_storage=storage),
        Linear8bitLt(64, 33, has_fp16_weights=False, threshold=2.0),
    )
    return model.to("cpu").requires_grad_(False)


def check(storage: torch.dtype) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plain = model_of(storage)
    sharded = copy.deepcopy(plain)
    for module in (sharded[0], sharded[2], sharded[3], sharded):
        fully_shard(module)
    x = torch.randn(4, 192)
    for training in (False, False, True, False):
        plain.train(training)
        sharded.train(training)
        inputs = [x.clone().requires_grad_(training) for _ in range(2)]
        outputs = plain(inputs[0]), sharded(inputs[1])
        assert torch.equal(*outputs)
        if training:
            for y in outputs:
                y.sum().backward()
            assert torch.equal(inputs[0].grad, inputs[1].grad)
    expected, state_dict = plain.state_dict(), sharded.state_dict()
    assert list(state_dict) == list(expected)
    for key, value in state_dict.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        assert torch.equal(
            full.view(-1).view(torch.uint8), expected[key].view(-1).view(torch.uint8)
        )
    four_bit = {k: v.clone() for k, v in state_dict.items() if not k.startswith("3.")}
    for key in ("0.weight", "2.weight"):
        state_dict[key].to_local().view(torch.uint8).zero_()
    assert not torch.equal(sharded(x), plain(x))
    sharded.load_state_dict(four_bit, strict=False)
    assert torch.equal(sharded(x), plain(x))


def check_fsdp1() -> None:
    """FSDP of the first kind: storage in floating point; torch refuses to flatten integers."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    def sharded(model: torch.nn.Module) -> torch.nn.Module:
        return FullyShardedDataParallel(
            copy.deepcopy(model),
            auto_wrap_policy=ModuleWrapPolicy({LinearNF4}),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )

    plain = model_of(torch.float32)[:3]
    model = sharded(plain)
    x = torch.randn(4, 192)
    for training in (False, False, True, False):
        inputs = [x.clone().requires_grad_(training) for _ in range(2)]
        outputs = plain.train(training)(inputs[0]), model.train(training)(inputs[1])
        assert torch.equal(*outputs)
        if training:
            for y in outputs:
                y.sum().backward()
            assert torch.equal(inputs[0].grad, inputs[1].grad)
    with pytest.raises(ValueError, match="Cannot flatten integer dtype tensors"):
        sharded(model_of(torch.uint8)[:3])


def run(rank: int, world_size: int, path: str, checks: Sequence[Callable[[], None]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=world_size
    )
    try:
        for each in checks:
            each()
    finally:
        torch.distributed.destroy_process_group()


def on_two_processes(tmp_path: Path, *checks: Callable[[], None]) -> None:
    import torch.multiprocessing as mp

    mp.spawn(run, args=(2, str(tmp_path / "rendezvous"), checks), nprocs=2)


def test_fsdp2(tmp_path: Path) -> None:
    storages = (torch.float32, torch.bfloat16, torch.uint8)
    on_two_processes(tmp_path, *(functools.partial(check, storage) for storage in storages))


def test_fsdp1(tmp_path: Path) -> None:
    on_two_processes(tmp_path, check_fsdp1)
