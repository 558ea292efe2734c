"""One training run."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from typing import TYPE_CHECKING

import torch

from side_by_side.optimizers import state_bytes
from training_study.model import LanguageModel, Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from training_study.contenders import Contender
    from training_study.text import Text

#: Points of a loss curve.
POINTS = 50


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs share.

    Attributes
    ----------
    steps, batch
        Updates, and windows of text in each.
    shape
        Of the model.
    warmup
        Share of the steps in which the learning rate rises; after it a cosine takes it to 0.
    clip
        Longest norm of the gradient.
    watched, judged
        Windows of the held-out text for a point of the curve, and for the final loss.
    dtype
        Of matrix products; parameters are float32.
    seeds
        Of the model's parameters and of the order of the text.
    """

    steps: int = 400
    batch: int = 8
    shape: Shape = dataclasses.field(default_factory=Shape)
    warmup: float = 0.1
    clip: float = 1.0
    watched: int = 32
    judged: int = 768
    dtype: str = "bfloat16"
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0, as a share of its peak."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))


#: A run of seconds: it shows that everything works, and nothing about optimizers.
QUICK = Settings(steps=20, batch=4, shape=Shape(64, 2, 2, 64), watched=4, judged=16, seeds=(0, 1))


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a curve: updates done, mean loss of those since the last point, held-out loss."""

    step: int
    training: float
    held_out: float


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of one optimizer with one seed.

    Attributes
    ----------
    optimizer, seed, lr
        What ran.
    final
        Loss on the judged windows of the held-out text, in nats per byte.
    bytes_per_parameter
        Of the optimizer's states.
    seconds
        Of the whole run.
    points
        The curve.
    """

    optimizer: str
    seed: int
    lr: float
    final: float
    bytes_per_parameter: float
    seconds: float
    points: list[Point]


def train(
    contender: Contender,
    seed: int,
    settings: Settings,
    text: Text,
    progress: Callable[[], object],
    lr: float | None = None,
) -> Run:
    """Train a model from a seed; parameters and text are the same for every contender."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = LanguageModel(settings.shape)
    optimizer = contender.make(model, settings.steps, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate)
    held_out = windows(text.held_out, settings.shape.length)[: settings.judged]
    order = torch.Generator().manual_seed(seed)
    since: list[float] = []
    points = []
    for step in range(1, settings.steps + 1):
        batch = sample(text.training, settings, order)
        loss = model.loss(batch, settings.product_dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        since.append(loss.item())
        if step * POINTS // settings.steps > (step - 1) * POINTS // settings.steps:
            watched = judge(model, held_out[: settings.watched], settings)
            points.append(Point(step, round(statistics.fmean(since), 5), round(watched, 5)))
            since.clear()
        progress()
    contender.check(optimizer, model)
    return Run(
        contender.name,
        seed,
        lr or contender.family.lr,
        judge(model, held_out, settings),
        state_bytes(optimizer),
        time.perf_counter() - start,
        points,
    )


def windows(text: torch.Tensor, length: int) -> torch.Tensor:
    """Return the text as rows of ``length`` bytes to read and one more to predict."""
    return text[: text.numel() // (length + 1) * (length + 1)].view(-1, length + 1)


def sample(text: torch.Tensor, settings: Settings, order: torch.Generator) -> torch.Tensor:
    """Return a batch of windows from random places."""
    size = settings.shape.length + 1
    starts = torch.randint(text.numel() - size + 1, (settings.batch, 1), generator=order)
    return text[starts + torch.arange(size)]


@torch.no_grad()
def judge(model: LanguageModel, held_out: torch.Tensor, settings: Settings) -> float:
    """Return the mean loss of the windows, a batch at a time."""
    losses = [
        model.loss(batch, settings.product_dtype).item() * len(batch)
        for batch in held_out.split(4 * settings.batch)
    ]
    return math.fsum(losses) / len(held_out)
