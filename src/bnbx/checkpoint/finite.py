"""The check that a tensor holds numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bnbx.checkpoint.tensor_file import printable
from bnbx.ops import error

if TYPE_CHECKING:
    from torch import Tensor


def check_finite(name: str, values: Tensor) -> None:
    """Raise ``ValueError`` naming the tensor if one of its values is a NaN or an infinity."""
    if not values.is_floating_point() or not values.numel():
        return
    if values.itemsize == 1:
        values = values.float()  # the 8-bit types have no order
    # A NaN is both. One pass at the speed of memory, where isfinite would take twenty times that.
    if not torch.stack(torch.aminmax(values)).isfinite().all():
        hint = "The checkpoint is damaged."
        raise error(f"tensor {printable(name)}", "finite values", "a NaN or an infinity", hint)
