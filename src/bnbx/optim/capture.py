"""Steps in which nothing depends on a number that the host reads, so that it need not wait.

A graph repeats the kernels of the step that was captured, with the arguments that they got then.
With ``capturable=True`` the count of steps is therefore a tensor beside the states, the learning
rate may be one, and the operation gets ``live``, a tensor with what follows from both, which its
kernels read when they run. With percentile clipping it gets one because only the device knows the
norms of the gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.functional.optim import clipped_norms
from bnbx.ops import LIVE_NUMBERS, error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bnbx.optim.batch import Batch


def refuse_uncaptured(p: Tensor) -> None:
    """Raise ``ValueError`` if a graph is being captured on the parameter's device."""
    if p.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        hint = "Its step count and learning rate would stay those of the captured step."
        raise error("capturable", "True for a step in a CUDA graph", False, hint)


def _refuse_without_float64(device: torch.device) -> None:
    if device.type == "mps":
        expected = "a device on which torch has float64, which has the numbers of a step"
        hint = "Leave capturable False, percentile_clipping 100 and lr a number."
        raise error("params", expected, device, hint)


def counted_on_device(state: dict[str, Any], device: torch.device) -> None:
    """Make the step count of a state a tensor; float64, so that powers of it are those of the host.

    Graphs need it to stay the same tensor from the step before the capture on.
    """
    _refuse_without_float64(device)
    if not isinstance(state["step"], Tensor):
        step = float(state["step"])
        state["step"] = torch.full((), step, dtype=torch.float64, device=device)


def counted_on_host(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with its step count as an int, the form that checkpoints have."""
    return {**state, "step": int(state["step"])} if "step" in state else state


def live_numbers(
    batch: Batch, gradients: Sequence[Tensor], hyperparameters: Callable[..., tuple[Any, ...]]
) -> Tensor:
    """Return the ``live`` argument of the next step of a batch.

    Parameters
    ----------
    batch
        Parameters whose steps are counted in tensors, or whose gradients are clipped to a
        percentile of their norms, which become part of their states.
    gradients
        Those of the batch, on this process.
    hyperparameters
        Returns the constants of a step, in the order of the operation's schema, from the settings
        and the count, an int or a tensor of shape ``(parameters,)``.
    """
    _refuse_without_float64(batch.device)
    steps = [state["step"] for state in batch.states]
    counts = (torch.stack(steps) if batch.is_counted_on_device else batch.step) + 1
    lr = batch.config["lr"]
    if isinstance(lr, Tensor):  # it stays one, so that what it holds at a replay counts
        rate, *others = hyperparameters({**batch.config, "lr": 1.0}, counts)
        rate = rate * lr.reshape(()).double()
    else:
        rate, *others = hyperparameters(batch.config, counts)
    _, _, beta3, alpha, _, _, sign, *_ = others
    scale = sign * _clipping(batch, gradients, counts)
    size = len(batch.states), len(LIVE_NUMBERS)
    live = torch.empty(size, dtype=torch.float64, device=batch.device)
    for column, numbers in zip(live.unbind(1), (counts, rate, beta3, alpha, scale), strict=True):
        if isinstance(numbers, Tensor):
            column.copy_(numbers)
        else:
            column.fill_(numbers)
    return live


def _clipping(batch: Batch, gradients: Sequence[Tensor], counts: int | Tensor) -> float | Tensor:
    """Return the factor that the percentile of its last norms leaves to each gradient."""
    percentile = batch.config["percentile_clipping"]
    if percentile >= 100:
        return 1.0
    norms = torch._foreach_norm(list(gradients), dtype=torch.float32)  # noqa: SLF001
    histories = [state["gnorm_vec"] for state in batch.states]
    steps = counts.unsqueeze(1) if isinstance(counts, Tensor) else counts
    return clipped_norms(torch.stack(list(norms)), histories, steps, percentile)[1]
