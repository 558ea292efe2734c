"""Writing a result into the tensor that the caller gave for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor


def into(argument: str, given: Tensor | None, result: Tensor) -> Tensor:
    """Return ``result``, or ``given`` with the result copied into it.

    Raises
    ------
    ValueError
        If ``given`` has another shape or dtype: a copy would broadcast or convert it.
    """
    if given is None:
        return result
    if given.shape != result.shape or given.dtype != result.dtype:
        expected = f"shape {tuple(result.shape)} and {result.dtype}"
        raise error(argument, expected, f"shape {tuple(given.shape)} and {given.dtype}")
    return given.copy_(result)
