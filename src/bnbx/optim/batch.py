"""Parameters that an optimizer updates together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass
class Batch:
    """Parameters that one call of the operation updates."""

    rule: str
    hyperparameters: tuple[Any, ...]
    rounding: str | None
    parameters: list[Tensor] = dataclasses.field(default_factory=list)
    gradients: list[Tensor] = dataclasses.field(default_factory=list)
    states: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def part(self, start: int, stop: int) -> Batch:
        """Return the batch with these of its parameters only."""
        return dataclasses.replace(
            self,
            parameters=self.parameters[start:stop],
            gradients=self.gradients[start:stop],
            states=self.states[start:stop],
        )
