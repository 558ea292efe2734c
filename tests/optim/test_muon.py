"""Muon: against torch's, with 8 bits against 32, in training, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from bnbx.codebooks import create_dynamic_map
from bnbx.optim import (
    AdamW8bit,
    GlobalOptimManager,
    Muon,
    Muon8bit,
    Muon32bit,
    flatten_state_dict,
    unflatten_state_dict,
)
from bnbx.optim.muon import NS_COEFFICIENTS, orthogonalized

from .families import states_of

SHAPES = [(40, 30), (30, 40), (64, 64), (1, 7), (300, 5)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SETTINGS = [
    {},
    {"nesterov": False},
    {"adjust_lr_fn": "original", "lr": torch.tensor(0.03, dtype=torch.float64)},
    {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0},
    {"momentum": 0.0, "weight_decay": 0.3},
    {"ns_steps": 3, "eps": 1e-3, "ns_coefficients": [2.0, -1.5, 0.5]},
]
every_width = pytest.mark.parametrize("cls", [Muon8bit, Muon32bit])


def matrices(shapes=SHAPES, dtype=torch.float32, device="cpu"):
    return [torch.nn.Parameter(torch.randn(s, device=device).to(dtype)) for s in shapes]


def copies(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def set_gradients(params, *others):
    for i, p in enumerate(params):
        gradient = torch.randn(p.shape, device=p.device) * 10 ** torch.randn(())
        for q in (p, *(other[i] for other in others)):
            q.grad = gradient.to(q.dtype)


def train(optimizer, seed, steps=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape, generator=generator).to(p)
        optimizer.step()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("cls", [Muon, Muon32bit])
def test_32bit_is_the_muon_of_torch(cls, settings, device):
    settings = {"lr": 0.1, **settings}
    ours = matrices(device=device)
    theirs = copies(ours)
    optimizers = cls(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(8):
        set_gradients(ours, theirs)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


@every_width
def test_maximize_goes_up_the_gradient(cls, device):
    up, down = matrices(device=device), None
    down = copies(up)
    first, second = cls(up, maximize=True, min_8bit_size=0), cls(down, min_8bit_size=0)
    for _ in range(3):
        set_gradients(up)
        for p, q in zip(up, down, strict=True):
            q.grad = -p.grad
        first.step()
        second.step()
    for p, q in zip(up, down, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", DTYPES)
def test_16bit_parameters_are_rounded_once_a_step(dtype, gradient, device):
    ours = matrices(dtype=dtype, device=device)
    optimizer = Muon(ours, lr=0.1)
    for _ in range(4):
        theirs = [torch.nn.Parameter(p.detach().float()) for p in ours]
        reference = torch.optim.Muon(theirs, lr=0.1)
        for p, q in zip(ours, theirs, strict=True):
            p.grad_dtype = gradient
            p.grad = torch.randn(p.shape, device=device).to(gradient)
            q.grad = p.grad.float()
            if optimizer.state[p]:
                reference.state[q]["momentum_buffer"] = optimizer.state[p]["state1"].clone()
        optimizer.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, q.to(dtype))
            assert p.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 64), (50, 200), (257, 31)])
def test_8bit_momentum_is_the_nearest_and_its_update_that_of_32bit(dtype, shape, device):
    """The update before it is scaled, which is (p - decayed p) / lr, has the same direction."""
    settings = {"lr": 0.1, "weight_decay": 0.0, "min_8bit_size": 0}
    ours = torch.nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
    optimizer = Muon8bit([ours], **settings)
    qmap = create_dynamic_map().to(device)
    exact = torch.zeros(shape, device=device, dtype=torch.float64)
    average = torch.zeros(shape, device=device)
    for _ in range(6):
        ours.grad = torch.randn(shape, device=device).to(dtype)
        g = ours.grad.double()
        best = 0.95 * average.double() + 0.05 * g
        exact = 0.95 * exact + 0.05 * g
        before = ours.detach().clone()
        optimizer.step()
        (average,) = states_of(optimizer.state[ours], ours.shape)
        for have, want in zip(average.flatten().split(256), best.flatten().split(256), strict=True):
            scale = want.abs().max()
            nearest = (qmap.double() * scale - want[:, None]).abs().min(1).values
            assert ((have - want).abs() <= nearest + 1e-6 * scale).all()
        wanted = orthogonalized(torch.lerp(g, exact, 0.95), NS_COEFFICIENTS, 5, 1e-7)
        moved = (before.float() - ours.detach().float()).flatten()
        cosine = torch.nn.functional.cosine_similarity(moved, wanted.float().flatten(), dim=0)
        assert cosine > 0.99


@pytest.mark.parametrize("shape", [(48, 48), (20, 90), (90, 20)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonalized_keeps_the_singular_vectors(shape, scale, device):
    matrix = torch.randn(shape, device=device, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix = left @ torch.diag(values.clamp(min=0.1 * values.max())) @ right * scale
    result = orthogonalized(matrix, NS_COEFFICIENTS, 5, 1e-7).double()
    assert result.shape == shape
    inner = left.t() @ result @ right.t()
    assert (inner.diagonal() > 0.6).all()
    assert (inner.diagonal() < 1.3).all()
    assert (inner - inner.diagonal().diag()).abs().max() < 0.1


def test_state_is_laid_out_as_that_of_lion(device):
    params = matrices([(64, 64), (8, 8)], torch.bfloat16, device)
    optimizer = Muon8bit(params)
    train(optimizer, 1)
    large, small = (optimizer.state[p] for p in params)
    assert large.keys() == {"step", "state1", "absmax1", "qmap1"}
    assert (large["state1"].dtype, large["state1"].shape) == (torch.uint8, (64, 64))
    assert (large["absmax1"].dtype, large["absmax1"].shape) == (torch.float32, (16,))
    assert torch.equal(large["qmap1"].cpu(), create_dynamic_map(signed=True))
    assert small.keys() == {"step", "state1"}
    assert small["state1"].dtype == torch.float32
    assert large["step"] == small["step"] == 3


def test_groups_have_their_own_settings(device):
    params = matrices([(64, 64)] * 4, device=device)
    others = copies(params)
    groups = [
        {"optim_bits": 8},
        {"momentum": 0.5, "min_8bit_size": 5000, "optim_bits": 8},
        {"nesterov": False},
        {"ns_steps": 3, "lr": 0.5},
    ]
    together = Muon([{"params": [p], **g} for p, g in zip(params, groups, strict=True)], lr=0.1)
    alone = [Muon([p], **{"lr": 0.1, **g}) for p, g in zip(others, groups, strict=True)]
    for _ in range(3):
        set_gradients(params, others)
        together.step()
        for optimizer in alone:
            optimizer.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    kinds = [together.state[p]["state1"].dtype for p in params]
    assert kinds == [torch.uint8, torch.float32, torch.float32, torch.float32]


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def flattened(state_dict):
    return unflatten_state_dict(*flatten_state_dict(state_dict))


@every_width
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", [copy.deepcopy, saved_and_loaded, flattened])
def test_going_on_from_a_checkpoint_is_exact(cls, dtype, way, device):
    straight = cls(matrices(dtype=dtype, device=device), lr=0.1, min_8bit_size=100)
    first = cls(copies(straight.param_groups[0]["params"]), lr=0.1, min_8bit_size=100)
    train(straight, 1)
    train(first, 1)
    second = cls(copies(first.param_groups[0]["params"]), min_8bit_size=0)
    second.load_state_dict(way(first.state_dict()))
    for optimizer in (straight, second):
        train(optimizer, 2)
    for p, q in zip(*(o.param_groups[0]["params"] for o in (straight, second)), strict=True):
        assert torch.equal(p, q)
        for key, value in straight.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.state[q][key]))


@every_width
@pytest.mark.filterwarnings("ignore:torch.distributed is :UserWarning")
def test_distributed_checkpoint(cls, tmp_path):
    def model_and_optimizer():
        model = torch.nn.Linear(64, 80, bias=False)
        return model, cls(model.parameters(), lr=0.1)

    first, second = model_and_optimizer(), model_and_optimizer()
    train(first[1], 1)
    names = ("model", "optimizer")
    dcp.save(
        dict(zip(names, get_state_dict(*first), strict=True)), checkpoint_id=tmp_path, no_dist=True
    )
    read = dict(zip(names, get_state_dict(*second), strict=True))
    dcp.load(read, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(*second, model_state_dict=read["model"], optim_state_dict=read["optimizer"])
    for _, optimizer in (first, second):
        train(optimizer, 2)
    assert torch.equal(first[0].weight, second[0].weight)


@every_width
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_by_themselves(cls, copied, device):
    optimizer = cls(matrices(device=device), lr=0.1, min_8bit_size=100)
    train(optimizer, 1)
    twin = copied(optimizer)
    for o in (optimizer, twin):
        train(o, 2)
    for p, q in zip(*(o.param_groups[0]["params"] for o in (optimizer, twin)), strict=True):
        assert torch.equal(p, q)
        assert p is not q


@every_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strided", [lambda t: t.t().contiguous().t(), lambda t: t[::2, 1:-1:3]])
def test_strides_are_kept(cls, dtype, strided, device):
    values = torch.randn(40, 60, device=device, dtype=dtype)
    p = torch.nn.Parameter(strided(values.clone()))
    plain = torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    address, strides = p.data_ptr(), p.stride()
    optimizer = cls([p, plain], min_8bit_size=0)
    for _ in range(3):
        plain.grad = torch.randn_like(plain)
        p.grad = plain.grad.t().contiguous().t()
        optimizer.step()
    assert (p.data_ptr(), p.stride()) == (address, strides)
    assert torch.equal(p, plain)


@every_width
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (0, 0)])
def test_empty_and_tiny_matrices(cls, shape, device):
    p = torch.nn.Parameter(torch.ones(shape, device=device))
    optimizer = cls([p], lr=0.5, weight_decay=0.0, min_8bit_size=0)
    p.grad = torch.ones(shape, device=device)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    assert ((p > 0.2) & (p < 0.8)).all()


@every_width
def test_zero_gradients_only_decay(cls, device):
    (p,) = matrices([(64, 64)], device=device)
    before = p.detach().clone()
    optimizer = cls([p], lr=0.5, weight_decay=0.1)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before * 0.95)
    p.grad = None
    kept = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, kept)


def test_a_nan_spoils_its_block_of_the_momentum_only(device):
    (p,) = matrices([(64, 64)], device=device)
    optimizer = Muon8bit([p])
    p.grad = torch.ones_like(p)
    p.grad[0, 0] = math.nan
    optimizer.step()
    (average,) = states_of(optimizer.state[p], p.shape)
    assert average.flatten()[:256].isnan().all()
    assert average.flatten()[256:].isfinite().all()


def test_schedulers_move_rate_and_momentum(device):
    ours = matrices([(20, 30)], device=device)
    theirs = copies(ours)
    optimizers = Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=10) for o in optimizers
    ]
    seen = set()
    for _ in range(8):
        set_gradients(ours, theirs)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        seen.add((optimizers[0].param_groups[0]["lr"], optimizers[0].param_groups[0]["momentum"]))
    assert len(seen) == 8
    assert torch.equal(ours[0], theirs[0])


def test_8bit_training_follows_32bit_training(device):
    x = torch.randn(512, 32, device=device)
    target = torch.sin(x @ torch.randn(32, 4, device=device))

    def losses(cls):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 4)
        ).to(device)
        hidden = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        optimizers = [cls(hidden, lr=0.05, min_8bit_size=256), AdamW8bit(others, lr=1e-2)]
        schedulers = [
            torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=80) for o in optimizers
        ]
        values = []
        for _ in range(80):
            loss = torch.nn.functional.mse_loss(model(x), target)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for step in (*optimizers, *schedulers):
                step.step()
            values.append(loss.item())
        return values

    quantized, full = losses(Muon8bit), losses(Muon32bit)
    assert full[-1] < 0.5 * full[0]
    assert math.isclose(sum(quantized[-10:]), sum(full[-10:]), rel_tol=0.1)


def test_thousands_of_steps_do_not_drift(device):
    target = torch.randn(32, 16, device=device)
    p = torch.nn.Parameter(torch.randn(32, 16, device=device))
    optimizer = Muon8bit([p], lr=0.05, weight_decay=0.0, min_8bit_size=0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=2000)
    for _ in range(2000):
        p.grad = p.detach() - target + 0.1 * torch.randn(32, 16, device=device)
        optimizer.step()
        scheduler.step()
    assert (p - target).abs().mean() < 0.05


@pytest.mark.parametrize("shape", [(), (300,), (3, 4, 5), (8, 3, 3, 3)])
def test_what_is_no_matrix_is_refused(shape):
    p = torch.nn.Parameter(torch.zeros(shape))
    message = r"^param_groups\[0\]\['params'\]\[1\]: expected a matrix .*got shape .*AdamW8bit"
    with pytest.raises(ValueError, match=message):
        Muon8bit([*matrices([(4, 4)]), p])
    optimizer = Muon8bit(matrices([(4, 4)]))
    with pytest.raises(ValueError, match=r"^param_groups\[1\]"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -1.0),
        ("momentum", 1.0),
        ("nesterov", 1),
        ("ns_coefficients", (1.0, 2.0)),
        ("ns_coefficients", 3.0),
        ("ns_coefficients", (1.0, 2.0, "3")),
        ("ns_steps", 0),
        ("ns_steps", 100),
        ("ns_steps", 5.0),
        ("ns_steps", True),
        ("adjust_lr_fn", "match"),
        ("eps", -1e-7),
        ("optim_bits", 16),
        ("min_8bit_size", -1),
        ("maximize", "up"),
    ],
)
def test_arguments_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"^{key}: expected"):
        Muon(matrices(), **{key: value})
    optimizer = Muon(matrices())
    with pytest.raises(ValueError, match=rf"^param_groups\[1\]\.{key}: expected"):
        optimizer.add_param_group({"params": matrices(), key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_unorm", 0.1),
        ("skip_zeros", True),
        ("percentile_clipping", 5),
        ("is_paged", True),
        ("betas", (0.9, 0.99)),
        ("amsgrad", True),
    ],
)
def test_settings_that_muon_lacks_are_refused(key, value):
    with pytest.raises(TypeError, match=key):
        Muon(matrices(), **{key: value})
    expected = rf"{key}: expected nothing, because Muon has no such setting, got"
    optimizer = Muon(matrices())
    with pytest.raises(ValueError, match=rf"^param_groups\[1\]\.{expected}"):
        optimizer.add_param_group({"params": matrices(), key: value})
    if key == "amsgrad":
        return
    p = optimizer.param_groups[0]["params"][0]
    before = p.detach().clone()
    GlobalOptimManager.get_instance().override_config(p, key, value)
    set_gradients([p])
    with pytest.raises(ValueError, match=f"^{expected}"):
        optimizer.step()
    assert torch.equal(p, before)


def test_settings_of_single_parameters_are_overridden(device):
    params = matrices([(64, 64)] * 2, device=device)
    manager = GlobalOptimManager.get_instance()
    manager.override_config(params[0], key_value_dict={"optim_bits": 32, "momentum": 0.0})
    optimizer = Muon8bit(params)
    for _ in range(2):
        set_gradients(params)
        optimizer.step()
    assert torch.equal(optimizer.state[params[0]]["state1"], params[0].grad)
    assert optimizer.state[params[1]]["state1"].dtype == torch.uint8


def test_other_states_are_refused_and_change_nothing():
    optimizer, lion = Muon8bit(matrices([(64, 64)])), AdamW8bit(matrices([(64, 64)]))
    train(optimizer, 1)
    train(lion, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"betas: expected nothing"):
        optimizer.load_state_dict(lion.state_dict())
    saved = copy.deepcopy(before)
    saved["state"][0]["__bnb_optimizer_quant_state__"]["absmax1"] = torch.ones(15)
    with pytest.raises(ValueError, match=r"^state_dict\['state'\]\[0\]\['absmax1'\]: expected"):
        optimizer.load_state_dict(saved)
    train(optimizer, 2)
    (p,) = optimizer.param_groups[0]["params"]
    assert optimizer.state[p]["step"] == 6
    assert before["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.fixture
def mesh(device):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh(torch.device(device).type, (2,))
    dist.destroy_process_group()


def test_shards_are_refused_and_replicas_are_not(mesh, device):
    (plain,) = matrices([(50, 30)], device=device)
    shard, replica = (
        torch.nn.Parameter(DTensor.from_local(plain.detach().clone(), mesh, [placement]))
        for placement in (Shard(0), Replicate())
    )
    with pytest.raises(ValueError, match=r"\['params'\]\[0\]: expected a whole matrix .*Shard"):
        Muon8bit([shard])
    optimizers = [Muon8bit([p], min_8bit_size=0) for p in (plain, replica)]
    plain.grad = torch.randn_like(plain)
    replica.grad = DTensor.from_local(plain.grad.clone(), mesh, [Replicate()])
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(replica.to_local(), plain)
