"""Ways to store a state: safetensors and torch.distributed.checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from bnbx.optim import Adam8bit, AdamW4bit, flatten_state_dict, unflatten_state_dict

from .families import every_maker

safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is :UserWarning")


def model_and(cls, seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Linear(80, 20))
    return model, cls(model.parameters(), lr=0.1, min_8bit_size=256)


def train(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p)
        optimizer.step()


def assert_both_go_on_alike(first, second):
    for model, optimizer in (first, second):
        train(model, optimizer, 2)
    for p, q in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(p, q)
    assert {s["step"] for s in second[1].state.values()} == {6}


@every_maker
def test_safetensors(cls, tmp_path):
    first, second = model_and(cls, 1), model_and(cls, 2)
    train(*first, 1)
    tensors, metadata = flatten_state_dict(first[1].state_dict())
    safetensors.save_file(tensors, tmp_path / "optimizer.safetensors", metadata)
    assert sum("qmap" in name for name in tensors) <= 2
    with safetensors.safe_open(tmp_path / "optimizer.safetensors", "pt") as file:
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        second[1].load_state_dict(unflatten_state_dict(read, file.metadata()))
    second[0].load_state_dict(first[0].state_dict())
    assert_both_go_on_alike(first, second)


def test_a_rate_that_is_a_tensor_is_stored():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Adam8bit([p], lr=torch.tensor(0.3))
    read = unflatten_state_dict(*flatten_state_dict(optimizer.state_dict()))
    assert torch.equal(read["param_groups"][0]["lr"], torch.tensor(0.3))
    assert read["param_groups"][0]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    "metadata",
    [{}, {"bnbx.optim": "{"}, {"bnbx.optim": "[]"}, {"bnbx.optim": json.dumps({"state": {}})}],
)
def test_metadata_of_others_is_refused(metadata):
    with pytest.raises(ValueError, match="^metadata: expected an entry"):
        unflatten_state_dict({}, metadata)


def test_a_missing_tensor_is_refused():
    model, optimizer = model_and(Adam8bit, 1)
    train(model, optimizer, 1)
    tensors, metadata = flatten_state_dict(optimizer.state_dict())
    del tensors["state.0.state1"]
    with pytest.raises(ValueError, match=r"^metadata: .*state\.0\.state1"):
        unflatten_state_dict(tensors, metadata)


def test_what_is_no_data_is_refused():
    state_dict = Adam8bit([torch.nn.Parameter(torch.ones(3))]).state_dict()
    state_dict["param_groups"][0]["note"] = object()
    with pytest.raises(ValueError, match=r"param_groups\.0\.note: .*got object"):
        flatten_state_dict(state_dict)


@every_maker
def test_distributed_checkpoint(cls, tmp_path):
    through_distributed_checkpoint(model_and(cls, 1), model_and(cls, 2), tmp_path)


@pytest.mark.parametrize("option", ["kahan_sum", "bf16_stochastic_round"])
def test_distributed_checkpoint_of_bfloat16(option, tmp_path):
    def low(seed):
        torch.manual_seed(seed)
        model = torch.nn.Linear(64, 80).bfloat16()
        return model, AdamW4bit(model.parameters(), lr=1e-3, min_8bit_size=256, **{option: True})

    through_distributed_checkpoint(low(1), low(2), tmp_path)


def through_distributed_checkpoint(first, second, tmp_path):
    train(*first, 1)
    dcp.save(
        dict(zip(("model", "optimizer"), get_state_dict(*first), strict=True)),
        checkpoint_id=tmp_path,
        no_dist=True,
    )
    read = dict(zip(("model", "optimizer"), get_state_dict(*second), strict=True))
    dcp.load(read, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(*second, model_state_dict=read["model"], optim_state_dict=read["optimizer"])
    assert_both_go_on_alike(first, second)


def test_distributed_checkpoint_of_plain_state_dicts(tmp_path):
    first, second = model_and(Adam8bit, 1), model_and(Adam8bit, 2)
    train(*first, 1)
    train(*second, 3)  # it is read into tensors that are there
    dcp.save(first[1].state_dict(), checkpoint_id=tmp_path, no_dist=True)
    read = second[1].state_dict()
    dcp.load(read, checkpoint_id=tmp_path, no_dist=True)
    second[1].load_state_dict(read)
    second[0].load_state_dict(first[0].state_dict())
    assert_both_go_on_alike(first, second)


@every_maker
@pytest.mark.parametrize("cpu_offload", [False, True])
def test_full_state_dicts(cls, cpu_offload):
    options = StateDictOptions(full_state_dict=True, cpu_offload=cpu_offload)
    first, second = model_and(cls, 1), model_and(cls, 2)
    train(*first, 1)
    saved = get_optimizer_state_dict(*first, options=options)
    assert {"0.weight", "1.bias"} < saved["state"].keys()
    set_optimizer_state_dict(*second, saved, options=options)
    second[0].load_state_dict(first[0].state_dict())
    assert_both_go_on_alike(first, second)


def test_flattened_state_dicts_are_refused():
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    first, second = model_and(Adam8bit, 1), model_and(Adam8bit, 2)
    train(*first, 1)
    saved = get_optimizer_state_dict(*first, options=options)
    with pytest.raises(ValueError, match=r"got dict\. Leave out flatten_optimizer_state_dict\."):
        set_optimizer_state_dict(*second, saved, options=options)
