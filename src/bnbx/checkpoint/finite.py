"""The check that a tensor holds numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnbx.checkpoint.tensor_file import printable
from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor

#: Elements that are looked at together, so that the answers take little memory.
PIECE = 1 << 22


def check_finite(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` naming the tensor if one of its values is a NaN or an infinity."""
    if not values.is_floating_point():
        return
    for piece in values.reshape(-1).split(PIECE):
        # isfinite does not know the 8-bit types
        numbers = piece.float() if piece.itemsize == 1 else piece
        if not numbers.isfinite().all():
            hint = "The checkpoint is damaged."
            raise error(f"tensor {printable(name)}", "finite values", "a NaN or an infinity", hint)
