"""Experts of transformers' mixtures in 4 bits, multiplied without decoding them.

transformers stacks the matrices of all experts in parameters of three dimensions, and marks the
module with how they lie: ``has_gate``, ``has_bias``, ``is_transposed`` and so on, the attributes
that its decorator ``use_experts_implementation`` sets. That is all that this module goes by, so a
class of another origin that has them works as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from bnbx.autograd import matmul_4bit_grouped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bnbx.functional import QuantState

    #: Codes, their state, and what to compute in.
    PackedParameter = tuple[Tensor, QuantState, torch.dtype | None]

_MARKS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed")


def expert_weights(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the stacked matrices of experts, in the order in which they are used.

    Nothing if the module is not one of experts.
    """
    if not all(hasattr(module, mark) for mark in _MARKS):
        return ()
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"


def multiply_experts(
    module: Any,
    packed: Sequence[PackedParameter],
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Return what the module's ``forward`` does, from packed codes.

    Parameters
    ----------
    module
        The experts: their biases, activation and norm.
    packed
        Of each of ``expert_weights``.
    hidden_states
        Of shape ``(tokens, hidden)``.
    top_k_index
        The experts of each token, ``(tokens, k)``. One that does not exist, from the number of
        experts on, adds nothing.
    top_k_weights
        Their shares, ``(tokens, k)``.

    Returns
    -------
    torch.Tensor
        Of the shape and dtype of ``hidden_states``.
    """
    tokens, choices = top_k_index.shape
    (_, state, compute_dtype), _ = packed
    dtype = compute_dtype or _dtype_of(hidden_states)
    expert, order = top_k_index.reshape(-1).sort(stable=True)
    # The first row of an expert above e is the one behind those of e.
    numbers = torch.arange(state.shape[0], device=expert.device, dtype=expert.dtype)
    offsets = torch.searchsorted(expert, numbers, right=True)
    rows = hidden_states[order // choices].to(dtype)
    for i, (name, (codes, of_name, _)) in enumerate(
        zip(expert_weights(module), packed, strict=True)
    ):
        if i:
            rows = _activated(module, rows).to(dtype)
        bias = getattr(module, f"{name}_bias") if module.has_bias else None
        rows = matmul_4bit_grouped(
            rows, codes, of_name, offsets, bias, transposed=module.is_transposed
        )
    if module.has_post_expert_norm:
        rows = module.post_expert_norm(rows)
    rows = rows * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return rows[place].view(tokens, choices, rows.shape[-1]).sum(1).to(hidden_states.dtype)


def _activated(module: Any, rows: Tensor) -> Tensor:
    return cast("Tensor", module._apply_gate(rows) if module.has_gate else module.act_fn(rows))


def _dtype_of(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
