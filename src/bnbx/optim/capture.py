"""Steps that a CUDA graph can capture: nothing in them depends on a number that the host reads.

A graph repeats the kernels of the step that was captured, with the arguments that they got then.
With ``capturable=True`` the count of steps is therefore a tensor beside the states, the learning
rate may be one, and the operation gets ``live``, a tensor with what follows from both, which its
kernels read when they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.ops import LIVE_NUMBERS, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from bnbx.optim.batch import Batch


def refuse_uncaptured(p: Tensor) -> None:
    """Raise ``ValueError`` if a graph is being captured on the parameter's device."""
    if p.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        hint = "Its step count and learning rate would stay those of the captured step."
        raise error("capturable", "True for a step in a CUDA graph", False, hint)


def counted_on_device(state: dict[str, Any], device: torch.device) -> None:
    """Make the step count of a state a tensor; float64, so that powers of it are those of the host.

    Graphs need it to stay the same tensor from the step before the capture on.
    """
    if not isinstance(state["step"], Tensor):
        step = float(state["step"])
        state["step"] = torch.full((), step, dtype=torch.float64, device=device)


def counted_on_host(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with its step count as an int, the form that checkpoints have."""
    return {**state, "step": int(state["step"])} if "step" in state else state


def live_numbers(batch: Batch, hyperparameters: Callable[..., tuple[Any, ...]]) -> Tensor:
    """Return the ``live`` argument of the next step of a batch.

    Parameters
    ----------
    batch
        Parameters whose steps are counted in tensors.
    hyperparameters
        Returns the constants of a step, in the order of the operation's schema, from the settings
        and the counts, of shape ``(parameters,)``.
    """
    counts = torch.stack([state["step"] for state in batch.states]) + 1
    # A rate that is a tensor stays one, so that what it holds at a replay counts.
    lr = batch.config["lr"]
    factor, _, _, beta3, alpha, *_ = hyperparameters({**batch.config, "lr": 1.0}, counts)
    rate = factor * (lr.reshape(()) if isinstance(lr, Tensor) else lr)
    live = counts.new_empty(len(counts), len(LIVE_NUMBERS))
    for column, numbers in zip(live.unbind(1), (counts, rate, beta3, alpha), strict=True):
        if isinstance(numbers, Tensor):
            column.copy_(numbers)
        else:
            column.fill_(numbers)
    return live
