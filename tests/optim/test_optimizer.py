"""The step: what is updated, in how many calls, and how it gets on with the rest of torch.optim."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bnbx.optim import SGD, Adam, Adam8bit, AdamW, AdamW8bit

from .families import every_maker


class Calls(TorchDispatchMode):
    """Records the bits of each call of an optimizer operation, and how many parameters it gets."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "bnbx":
            bits = args[1] if "blockwise" in func.__name__ else 32
            self.sizes.append((bits, len(args[2])))
        return func(*args, **(kwargs or {}))


def calls_of(optimizer):
    with Calls() as calls:
        optimizer.step()
    return sorted(calls.sizes)


def parameters(count, device="cpu", numel=300):
    params = [torch.nn.Parameter(torch.randn(numel, device=device)) for _ in range(count)]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def copies(params):
    clones = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for clone, p in zip(clones, params, strict=True):
        clone.grad = p.grad.clone()
    return clones


def test_equal_configurations_share_one_call(device):
    params = parameters(9, device)
    optimizer = AdamW8bit(
        [
            {"params": params[:3]},
            {"params": params[3:5]},
            {"params": params[5:6], "lr": 0.5},
            {"params": params[6:8], "optim_bits": 32},
            {"params": params[8:], "weight_decay": 0.5},
        ],
        min_8bit_size=0,
    )
    expected = [(8, 1), (8, 1), (8, 5), (32, 2)]
    assert calls_of(optimizer) == expected
    params[0].grad = None
    assert calls_of(optimizer) == [(8, 1), (8, 1), (8, 4), (32, 2)]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    params[0].grad = torch.ones_like(params[0])  # its step is another than that of the others
    assert calls_of(optimizer) == expected


@every_maker
def test_a_batch_gives_what_single_parameters_give(cls, device):
    params = parameters(5, device, 700)
    alone = copies(params)
    together = cls(params, min_8bit_size=0)
    singles = [cls([p], min_8bit_size=0) for p in alone]
    for step in range(4):
        params[step].grad = alone[step].grad = None  # so that the step counts differ
        together.step()
        for optimizer in singles:
            optimizer.step()
    for p, q in zip(params, alone, strict=True):
        assert torch.equal(p, q)
    assert [together.state[p].get("step", 0) for p in params] == [0, 1, 2, 3, 4]


@every_maker
def test_parameters_without_gradient_are_left_alone(cls, device):
    p, q = parameters(2, device)
    q.grad = None
    before = q.detach().clone()
    optimizer = cls([p, q])
    optimizer.step()
    assert torch.equal(q, before)
    assert list(optimizer.state) == [p]


@every_maker
def test_an_update_that_is_bounded_needs_a_batch_no_more_than_another(cls, device):
    params = parameters(3, device, 700)
    optimizer = cls(params, min_8bit_size=0, max_unorm=0.01)
    assert calls_of(optimizer)[0][1] == 3


def test_groups_may_bound_their_updates(device):
    p, q = parameters(2, device)
    optimizer = Adam([{"params": [p], "max_unorm": 0.01}, {"params": [q]}])
    for _ in range(2):
        optimizer.step()
    assert "unorm_vec" in optimizer.state[p]
    assert "unorm_vec" not in optimizer.state[q]
    optimizer.param_groups[1]["max_unorm"] = 0.01  # from now on
    optimizer.step()
    assert optimizer.state[q]["unorm_vec"] > 0.0


@every_maker
def test_percentile_clipping(cls, device):
    """A tenfold gradient is shortened to the sixth smallest of the norms before."""
    params = parameters(2, device, 700)
    others = copies(params)
    clipped = cls(params, min_8bit_size=0, percentile_clipping=5)
    plain = cls(others, min_8bit_size=0)
    for step in range(12):
        factor = 10.0 if step == 9 else 1.0 + step / 100
        for p, q in zip(params, others, strict=True):
            p.grad = torch.sign(torch.randn(700, device=device)) * factor
            # The first norm stands for all 100, then each step replaces one.
            q.grad = torch.sign(p.grad)
        clipped.step()
        plain.step()
    assert clipped.state[params[0]]["gnorm_vec"].shape == (100,)
    if "LARS" not in str(cls) and "LAMB" not in str(cls):  # these are not linear in the gradient
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_sparse_gradients_are_refused_before_anything_is_updated(device):
    p = parameters(1, device)[0]
    q = torch.nn.Parameter(torch.zeros(4, 4, device=device))
    index = torch.tensor([1], device=device)
    torch.nn.functional.embedding(index, q, sparse=True).sum().backward()
    before = p.detach().clone()
    optimizer = Adam([p, q])
    with pytest.raises(ValueError, match=r"^param_groups\[0\]\['params'\]\[1\]\.grad: .*dense"):
        optimizer.step()
    assert torch.equal(p, before)
    assert "step" not in optimizer.state[q]


@every_maker
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "strided",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], dim=-1)[..., 0],
        lambda t: t.view(5, 4, 3, 10).to(memory_format=torch.channels_last),
    ],
)
def test_strides_are_kept(cls, dtype, strided, device):
    values = torch.randn(20, 30, device=device, dtype=dtype)
    plain = torch.nn.Parameter(values.clone())
    p = torch.nn.Parameter(strided(values))
    address, strides = p.data_ptr(), p.stride()
    assert not p.is_contiguous()
    optimizer = cls([p, plain], min_8bit_size=0)
    for _ in range(3):
        plain.grad = torch.randn_like(values)
        p.grad = gradient = strided(plain.grad)
        kept = gradient.clone()
        optimizer.step()
        assert p.grad is gradient
        assert torch.equal(gradient, kept)
    assert (p.data_ptr(), p.stride()) == (address, strides)
    assert torch.equal(p.reshape(20, 30), plain)
    assert not torch.equal(plain, values)


def test_closure_is_evaluated_with_gradients(device):
    p = parameters(1, device)[0]
    optimizer = Adam([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert Adam(parameters(1)).step() is None


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [(AdamW, torch.optim.AdamW, {}), (SGD, torch.optim.SGD, {"momentum": 0.9})],
)
def test_schedulers_move_rates_and_betas(ours, theirs, settings, device):
    params = parameters(2, device)
    others = copies(params)
    optimizers = [ours(params, lr=0.1, **settings), theirs(others, lr=0.1, **settings)]
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=12) for o in optimizers
    ]
    rates = set()
    for _ in range(10):
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        rates.add((optimizers[0].param_groups[0]["lr"], optimizers[0].param_groups[0]["betas"]))
    assert len(rates) == 10
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


@every_maker
def test_schedulers_closures_and_later_groups_are_as_if_set_by_hand(cls, device):
    params = parameters(3, device, 700)
    others = copies(params)
    optimizer, plain = (cls([ps[0]], lr=0.01, min_8bit_size=0) for ps in (params, others))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=6)

    def loss_of(ps):
        for p in ps:
            p.grad = p.detach().sin()
        torch.nn.utils.clip_grad_norm_(ps, 3.0)
        return 7.0

    seen = set()
    for step in range(7):
        (ours, *_), (theirs, *_) = optimizer.param_groups, plain.param_groups
        theirs["lr"], theirs["betas"] = ours["lr"], tuple(ours["betas"])
        seen.add((ours["lr"], *ours["betas"]))
        assert optimizer.step(lambda: loss_of(params)) == 7.0
        loss_of(others)
        plain.step()
        if step < 5:
            scheduler.step()
        else:
            for o, ps in ((optimizer, params), (plain, others)):
                o.add_param_group({"params": ps[step - 4], "lr": 0.02, "weight_decay": 0.1})
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    assert len(seen) == 6
    assert [optimizer.state[p]["step"] for p in params[:2]] == [7, 1]


def test_rate_may_be_a_tensor(device):
    p = parameters(1, device)[0]
    q = copies([p])[0]
    rate = torch.tensor(0.1)
    optimizers = [Adam([p], lr=rate), Adam([q], lr=0.1)]
    for value in (0.1, 0.01):
        rate.fill_(value)
        optimizers[1].param_groups[0]["lr"] = rate.item()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(p, q)


def test_groups_can_be_added_later(device):
    p, q = parameters(2, device)
    optimizer = Adam([p], lr=0.0)
    optimizer.step()
    optimizer.add_param_group({"params": q, "lr": 0.1})
    kept, changed = p.detach().clone(), q.detach().clone()
    optimizer.step()
    assert torch.equal(p, kept)
    assert (q != changed).any()
    assert [optimizer.state[x]["step"] for x in (p, q)] == [2, 1]


def test_named_parameters_are_taken():
    model = torch.nn.Linear(4, 4)
    optimizer = Adam(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_gradient_scaler_and_clipping(device):
    p = parameters(1, device)[0]
    q = copies([p])[0]
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    optimizer, plain = Adam8bit([p], min_8bit_size=0), Adam8bit([q], min_8bit_size=0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((p * torch.arange(300.0, device=device) * factor).sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([p], 1.0)
        scaler.step(optimizer)
        scaler.update()
        if factor == 1.0:
            q.grad = torch.arange(300.0, device=device)
            torch.nn.utils.clip_grad_norm_([q], 1.0)
            plain.step()
    assert optimizer.state[p]["step"] == 2
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("cls", [Adam, Adam8bit, AdamW8bit])
def test_step_hooks_and_profiling(cls, device):
    optimizer = cls(parameters(2, device))
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert seen == ["pre", "post"]
    names = [event.key for event in profile.key_averages()]
    assert f"Optimizer.step#{cls.__name__}.step" in names


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_trained_parameters_of_other_dtypes_are_refused(dtype):
    p = torch.nn.Parameter(torch.zeros(4, dtype=dtype))
    with pytest.raises(ValueError, match=rf"\['params'\]\[0\]: .*float32.*got {dtype}"):
        Adam([p])
    optimizer = Adam(parameters(1))
    with pytest.raises(ValueError, match=r"^param_groups\[1\]\['params'\]\[0\]: "):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


def test_frozen_integer_parameters_are_taken_but_never_trained():
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    optimizer = Adam([weight, *parameters(1)])
    optimizer.step()
    assert weight not in optimizer.state
    weight.grad = torch.ones(4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\[0\]: .*got torch\.uint8"):
        optimizer.step()


def test_a_parameter_cannot_stand_twice_in_a_group():
    p = parameters(1)[0]
    with (
        pytest.warns(UserWarning, match="duplicate"),
        pytest.raises(ValueError, match="each parameter once"),
    ):
        Adam([p, p])


def test_autograd_sees_that_parameters_changed(device):
    p = parameters(1, device)[0]
    optimizer = Adam([p])
    loss = (p**2).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_maker
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_by_themselves(cls, copied, device):
    params = parameters(3, device, 600)
    optimizer = cls(params, lr=0.1, weight_decay=0.1, min_8bit_size=100, skip_zeros=True)
    for _ in range(3):
        optimizer.step()
    frozen = [p.detach().clone() for p in params]
    gradients = [p.grad.clone() for p in params]
    twin = copied(optimizer)
    assert type(twin) is type(optimizer)
    assert twin.args == optimizer.args
    others = twin.param_groups[0]["params"]
    for q, gradient in zip(others, gradients, strict=True):
        q.grad = gradient
    for _ in range(3):
        twin.step()
    for p, before in zip(params, frozen, strict=True):
        assert torch.equal(p, before)
    for _ in range(3):
        optimizer.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert p is not q


def test_state_is_not_made_before_it_is_needed(device):
    optimizer = Adam8bit(parameters(2, device))
    assert optimizer.state_dict()["state"] == {}
    assert "Adam8bit" in repr(optimizer)
