"""Steps under CUDA graphs and ``torch.compile``."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnbx.optim import SGD, Adam, Adam8bit, AdamW8bit, Muon8bit, capture

from .families import FAMILIES, MAKERS, every_maker, make, parameters, set_gradients

SCHEDULES = {"AdEMAMix": {"t_alpha": 6, "t_beta3": 5}, "Adagrad": {"lr_decay": 0.1}}


class Recording(TorchDispatchMode):
    """What a CUDA graph does, on any device: each operation again, its results where they were."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a number"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            for old, new in zip(
                tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


@pytest.fixture
def _nothing_is_read(monkeypatch):
    """Leave out the one check that is left out while a graph is captured."""
    monkeypatch.setattr("bnbx.backends.reference.check_ascending", lambda *_: None)


def twins(name, device, dtype=torch.float32, **settings):
    ours = parameters([(300,), (20, 30), ()], dtype, device)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    own = SCHEDULES.get(name.removesuffix("8bit").removesuffix("32bit"), {})
    settings = {"weight_decay": 0.1, "min_8bit_size": 256, **own, **settings}
    return (
        make(name, ours, lr=torch.tensor(0.01, device=device), capturable=True, **settings),
        make(name, theirs, lr=0.01, **settings),
    )


def new_gradients(optimizer, other):
    params, others = (o.param_groups[0]["params"] for o in (optimizer, other))
    kept = [p.grad for p in params]
    set_gradients(params)
    for p, q, grad in zip(params, others, kept, strict=True):
        q.grad = p.grad.clone()
        if grad is not None:  # a graph reads its gradients where they were
            p.grad = grad.copy_(p.grad)


@pytest.mark.usefixtures("_nothing_is_read")
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_unorm": 0.5, "skip_zeros": True}, {"percentile_clipping": 60, "maximize": True}],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", [f"{name}{bits}" for name in FAMILIES for bits in ("8bit", "32bit")]
)
def test_a_recorded_step_is_right_when_it_is_replayed(name, dtype, settings, device):
    optimizer, plain = twins(name, device, dtype, **settings)
    rate = optimizer.param_groups[0]["lr"]
    for _ in range(2):
        new_gradients(optimizer, plain)
        optimizer.step()
        plain.step()
    new_gradients(optimizer, plain)
    with Recording() as graph:
        optimizer.step()
    plain.step()
    for step in range(5):
        rate.fill_(0.01 / (1 + step))
        plain.param_groups[0]["lr"] = 0.01 / (1 + step)
        new_gradients(optimizer, plain)
        graph.replay()
        plain.step()
    for p, q in zip(*(o.param_groups[0]["params"] for o in (optimizer, plain)), strict=True):
        # Where the reference rounds another way, a sign or a code may be another one.
        alike = torch.isclose(p, q, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
        assert alike.float().mean() > 0.95
    steps = [state["step"] for state in optimizer.state.values()]
    assert [int(step) for step in steps] == [8, 8, 8]
    assert all(step.device.type == torch.device(device).type for step in steps)


@pytest.mark.usefixtures("_nothing_is_read")
def test_clipping_to_a_percentile_reads_nothing(device):
    """The host, which counts the steps, does not wait for the norms of the gradients."""
    params = parameters([(300,), (20, 30), ()], torch.float32, device)
    optimizer = Adam8bit(params, percentile_clipping=5, min_8bit_size=0)
    for _ in range(3):
        set_gradients(params)
        with Recording() as recording:
            optimizer.step()
    updates = [c for c in recording.calls if "optimizer_update" in str(c[0])]
    assert len(updates) == 1  # for all of them
    assert [state["step"] for state in optimizer.state.values()] == [3, 3, 3]


@pytest.mark.usefixtures("_nothing_is_read")
def test_a_recorded_step_goes_on_with_other_random_bits(device):
    params = parameters([(2000,)], torch.bfloat16, device)
    optimizer = SGD(params, lr=1e-3, capturable=True, bf16_stochastic_round=True, momentum=0.0)
    params[0].data.fill_(1.0)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    params[0].data.fill_(1.0)
    with Recording() as graph:
        optimizer.step()
    moved = [params[0] != 1.0]
    for _ in range(2):
        params[0].data.fill_(1.0)
        graph.replay()
        moved.append(params[0] != 1.0)
    for share in moved:  # of a step of 2^-8, the distance to the next value below
        assert abs(share.double().mean() - 0.256) < 0.05
    assert not torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[1], moved[2])


def test_recordings_of_other_steps_are_wrong(device):
    """The test above can fail: a replay repeats the bias correction of the recorded step."""
    p, q = (torch.nn.Parameter(torch.zeros(300, device=device)) for _ in range(2))
    optimizers = Adam([p]), Adam([q])
    for x, optimizer in zip((p, q), optimizers, strict=True):
        x.grad = torch.ones_like(x)
        optimizer.step()
    with Recording() as graph:
        optimizers[0].step()
    graph.replay()
    for _ in range(2):
        optimizers[1].step()
    assert not torch.allclose(p, q, rtol=1e-2, atol=0)
    with pytest.raises(AssertionError, match="the host reads"), Recording():
        SGD([p], lr=torch.tensor(0.1)).step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_maker
def test_a_captured_graph(cls):
    optimizer, plain = (
        cls([p], lr=torch.tensor(0.01, device="cuda"), capturable=capturable, min_8bit_size=0)
        for p, capturable in zip(
            parameters([(300,)] * 2, device="cuda"), (True, False), strict=True
        )
    )
    (p,), (q,) = (o.param_groups[0]["params"] for o in (optimizer, plain))
    q.data.copy_(p)
    p.grad = torch.ones_like(p)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    with pytest.raises(ValueError, match="^capturable: "), torch.cuda.graph(torch.cuda.CUDAGraph()):
        plain.step()
    gradients = [torch.randn(300, device="cuda") for _ in range(4)]
    for gradient in gradients:
        p.grad.copy_(gradient)
        graph.replay()
    for gradient in [torch.ones(300, device="cuda"), *gradients]:
        q.grad = gradient
        plain.step()
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_a_capture_without_capturable_is_refused(monkeypatch):
    class Elsewhere(torch.nn.Parameter):
        device = torch.device("cuda")

    (p,) = parameters([(8,)])
    set_gradients([p])
    optimizer = Adam([p])
    optimizer.step()
    kept = p.detach().clone()
    p.__class__ = Elsewhere
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match=r"^capturable: expected True for a step in a CUDA graph"):
        optimizer.step()
    assert torch.equal(p, kept)


@every_maker
def test_checkpoints_of_capturable_steps_are_those_of_others(cls, device):
    params = parameters([(300,), (5,)], device=device)
    optimizer = cls(params, lr=0.01, min_8bit_size=256, capturable=True)
    for _ in range(3):
        set_gradients(params)
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert [type(entry["step"]) for entry in saved["state"].values()] == [int, int]
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for capturable in (True, False):
        twin = cls([torch.nn.Parameter(p.detach().clone()) for p in others], min_8bit_size=256)
        saved["param_groups"][0]["capturable"] = capturable
        twin.load_state_dict(saved)
        for p, q in zip(params, twin.param_groups[0]["params"], strict=True):
            p.grad = torch.linspace(-1, 1, p.numel(), device=device)
            q.grad = p.grad.clone()
        twin.step()
        kinds = {type(state["step"]) for state in twin.state.values()}
        assert kinds == {torch.Tensor if capturable else int}
        if capturable:
            expected = copy.deepcopy(optimizer)
            for p, q in zip(params, expected.param_groups[0]["params"], strict=True):
                q.grad = p.grad.clone()
            expected.step()
            pairs = zip(
                expected.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True
            )
            assert all(torch.equal(p, q) for p, q in pairs)
        assert {int(state["step"]) for state in twin.state.values()} == {4}


def test_what_capturable_steps_cannot_do_is_refused(device):
    (p,) = parameters([(8,)], device=device)
    with pytest.raises(TypeError, match="capturable"):
        Muon8bit(parameters([(4, 4)]), capturable=True)
    with pytest.raises(ValueError, match=r"^capturable: expected True or False"):
        Adam([p], capturable=1)


@pytest.mark.filterwarnings("ignore:Profiler record function:UserWarning")
@pytest.mark.parametrize(
    "cls", [*MAKERS, pytest.param(lambda params, **_: Muon8bit(params[:1]), id="Muon8bit")]
)
def test_a_compiled_step_is_the_step(cls, device):
    """It is one call of the kernels already, and runs as it is, without being traced each time."""
    ours = parameters([(20, 30), (300,)], device=device)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer, plain = (cls(params, lr=0.01, min_8bit_size=0) for params in (ours, theirs))

    @torch.compile(backend="eager")
    def scaled_step(factor):
        for p in ours:
            p.grad = p.grad * factor
        optimizer.step()

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            set_gradients(ours)
            for p, q in zip(ours, theirs, strict=True):
                q.grad = p.grad * 2.0
            scaled_step(2.0)
            plain.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_a_step_cannot_be_part_of_a_full_graph():
    (p,) = parameters([(8,)])
    set_gradients([p])
    optimizer = AdamW8bit([p])
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step():
        optimizer.step()

    with pytest.raises(torch._dynamo.exc.Unsupported, match="step"):
        step()


def test_an_apple_gpu_has_no_numbers_on_the_device():
    device = torch.device("mps")
    with pytest.raises(ValueError, match=r"^params: expected a device on which torch has float64"):
        capture.counted_on_device({"step": 0}, device)
    with pytest.raises(ValueError, match=r"got mps\. Leave capturable False"):
        capture.live_numbers(SimpleNamespace(device=device), [], None)
