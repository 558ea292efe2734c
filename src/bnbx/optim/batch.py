"""Parameters that an optimizer updates together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnbx.optim.extras import rounding_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

Constants = tuple[str, tuple[Any, ...]]  # rule and hyperparameters


@dataclasses.dataclass
class Batch:
    """Parameters that one call of the operation updates.

    Attributes
    ----------
    rule, hyperparameters, rounding
        What all of them share.
    config, step, qmap1, qmap2, device
        The settings, the steps done, the maps and the device of the first one. A parameter that
        agrees in them belongs to the batch; one that does not may.
    """

    rule: str
    hyperparameters: tuple[Any, ...]
    rounding: str | None
    config: dict[str, Any]
    step: Any
    qmap1: Tensor | None
    qmap2: Tensor | None
    device: torch.device
    parameters: list[Tensor] = dataclasses.field(default_factory=list)
    gradients: list[Tensor] = dataclasses.field(default_factory=list)
    states: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def is_counted_on_device(self) -> bool:
        """Whether the steps of each parameter are counted in a tensor."""
        return isinstance(self.step, Tensor)

    @property
    def is_live(self) -> bool:
        """Whether there are numbers that kernels read when they run: see ``live_numbers``."""
        return _is_live(self.step, self.config)

    def add(self, p: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        """Add a parameter."""
        self.parameters.append(p)
        self.gradients.append(gradient)
        self.states.append(state)

    def part(self, start: int, stop: int) -> Batch:
        """Return the batch with these of its parameters only."""
        return dataclasses.replace(
            self,
            parameters=self.parameters[start:stop],
            gradients=self.gradients[start:stop],
            states=self.states[start:stop],
        )


def _is_live(step: Any, config: dict[str, Any]) -> bool:
    return isinstance(step, Tensor) or config["percentile_clipping"] < 100


class Batches:
    """The batches of one step.

    Parameters
    ----------
    constants_of
        Returns rule and hyperparameters from the settings of a parameter and the number of a step,
        which is None where what depends on it is live.
    """

    def __init__(self, constants_of: Callable[[dict[str, Any], Any], Constants]) -> None:
        self._constants_of = constants_of
        self._batches: dict[tuple[Any, ...], Batch] = {}
        # Constants are made once for the same settings, which are kept so that no others get their
        # id, and equal ones are one object.
        self._known: dict[tuple[int, int | None], tuple[Constants, dict[str, Any]]] = {}
        self._equal: dict[Constants, Constants] = {}

    def all(self) -> list[Batch]:
        """Return the batches that have been asked for."""
        return list(self._batches.values())

    def of(self, p: Tensor, state: dict[str, Any], config: dict[str, Any]) -> Batch:
        """Return the batch to which a parameter belongs.

        Parameters
        ----------
        p, state, config
            The parameter, its state and its settings.
        """
        live = _is_live(state["step"], config)
        step = None if live else state["step"] + 1
        if (id(config), step) not in self._known:
            made = self._constants_of(config, step)
            self._known[id(config), step] = self._equal.setdefault(made, made), config
        constants, _ = self._known[id(config), step]
        rounding = rounding_of(p, config)
        qmaps = state.get("qmap1"), state.get("qmap2")
        key: tuple[Any, ...] = (id(constants), p.device, *map(id, qmaps), rounding)
        if live:
            # What is live is not among the constants: it is made for all of a batch by its settings
            # and the count of steps, if the host knows that.
            count = None if isinstance(state["step"], Tensor) else state["step"]
            key = (*key, id(config), count)
        if key not in self._batches:
            shared = (*constants, rounding)
            self._batches[key] = Batch(*shared, config, state["step"], *qmaps, p.device)
        return self._batches[key]
