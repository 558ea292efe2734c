"""Muon."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bnbx.ops import OPTIMIZER_BLOCKSIZE, OptimizerState, error
from bnbx.optim.optimizer import DEFAULT_SETTINGS, KbitOptimizer
from bnbx.optim.settings import SETTINGS
from bnbx.optim.state import local

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

    from bnbx.optim.batch import Batch

#: Jordan et al. 2024, "Coefficient optimization": the steepest quintic at 0 that keeps singular
#: values near 1.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

#: The settings of ``bnbx.optim`` that Muon has; whatever else is set to must be its default.
_OWN = (
    "lr",
    "weight_decay",
    "momentum",
    "nesterov",
    "ns_coefficients",
    "eps",
    "ns_steps",
    "adjust_lr_fn",
    "maximize",
    "optim_bits",
    "min_8bit_size",
)
_HINT = "Give the other parameters to AdamW8bit."


class _Constants(NamedTuple):
    """The constants of one step."""

    lr: float
    weight_decay: float
    momentum: float
    nesterov: bool
    ns_coefficients: tuple[float, float, float]
    eps: float
    ns_steps: int
    adjust_lr_fn: str | None
    maximize: bool


class Muon(KbitOptimizer):
    """Muon, its momentum in 8 or 32 bits: steps along the nearest orthogonal matrix.

    The arithmetic is that of ``torch.optim.Muon``. It is for the weight matrices of hidden layers.
    Embeddings, the head, biases and norms belong to another optimizer, such as :class:`AdamW8bit`.

    Parameters
    ----------
    params
        Matrices or groups of them. A group may have its own value for any setting below.
    lr
        Learning rate; a tensor with one element is read at each step.
    weight_decay
        Share of the parameter, times ``lr``, that is taken away in each step.
    momentum
        Share of the average of gradients that is kept in each step, in [0, 1).
    nesterov
        Look one step of the average ahead.
    ns_coefficients
        Coefficients of the first, third and fifth power in a Newton-Schulz step.
    eps
        The smallest norm that a matrix is divided by before the Newton-Schulz steps.
    ns_steps
        Number of Newton-Schulz steps, from 1 to 99.
    adjust_lr_fn
        How the shape ``(rows, columns)`` scales ``lr``: by ``sqrt(max(1, rows / columns))`` with
        ``"original"`` or None, by ``0.2 * sqrt(max(rows, columns))`` with ``"match_rms_adamw"``,
        whose updates are as long as those of AdamW and take its learning rate and weight decay.
    optim_bits
        8 or 32. The classes with a number in their name take only the default and use theirs.
    min_8bit_size
        Parameters with fewer elements get a 32-bit momentum.
    maximize
        Go up the gradient and not down.

    Raises
    ------
    ValueError
        If an argument has a value that is not supported; if a parameter is not a matrix, or is a
        DTensor of which this process has a shard: the Newton-Schulz steps need all of it.

    Notes
    -----
    The state is ``step`` and ``state1``, with 8 bits also ``absmax1`` and ``qmap1``, as that of
    :class:`Lion`. The momentum is decoded, updated and encoded again; what is orthogonalized is the
    new momentum before it is encoded. Newton-Schulz steps are products of bfloat16 matrices. A NaN
    in a gradient makes all of its parameter NaN, because they mix rows and columns; of the momentum
    it reaches its own block.

    References
    ----------
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025,
    "Muon is Scalable for LLM Training", section 2.2, for ``"match_rms_adamw"``; Gupta et al. 2025,
    "Effective Quantization of Muon Optimizer States", algorithm 1, for the 8-bit momentum.
    """

    _why_not_4bit = "Its momentum has been shown to hold in 8 bits."
    _rule = "muon"
    _kept = (OptimizerState(signed=True),)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = NS_COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
            },
            {"optim_bits": optim_bits, "min_8bit_size": min_8bit_size},
            None,
            {"maximize": maximize},
        )

    @classmethod
    def _checked(cls, key: str, value: Any, where: str = "") -> Any:
        if key in SETTINGS and key not in _OWN and value not in (DEFAULT_SETTINGS.get(key), False):
            expected = f"nothing, because {cls.__name__} has no such setting"
            raise error(f"{where}{key}", expected, repr(value))
        return super()._checked(key, value, where)

    @classmethod
    def _check_parameter(cls, where: str, p: Tensor) -> None:
        super()._check_parameter(where, p)
        if p.dim() != 2:
            raise error(where, f"a matrix for {cls.__name__}", f"shape {tuple(p.shape)}", _HINT)
        placements = getattr(p, "placements", ())
        if not all(placement.is_replicate() for placement in placements):
            expected = f"a whole matrix for {cls.__name__}, not a shard of one"
            raise error(where, expected, f"placements {placements}", _HINT)

    def _hyperparameters(self, config: dict[str, Any], step: Any) -> tuple[Any, ...]:  # noqa: ARG002
        # Overrides of single parameters may name what the constructor refuses.
        config = {key: self._checked(key, value) for key, value in config.items()}
        own = {key: config[key] for key in _Constants._fields}
        coefficients = tuple(map(float, config["ns_coefficients"]))
        return _Constants(**{**own, "lr": float(config["lr"]), "ns_coefficients": coefficients})

    def _update(self, batch: Batch) -> None:
        constants = _Constants(*batch.hyperparameters)
        for p, gradient, state in zip(batch.parameters, batch.gradients, batch.states, strict=True):
            g = local(gradient).float()
            if constants.maximize:
                g = -g
            average = _decoded(state).lerp_(g, 1.0 - constants.momentum)
            direction = g.lerp(average, constants.momentum) if constants.nesterov else average
            _move(local(p), direction, constants)
            _encode(average, state)
            state["step"] += 1


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return nearly the orthogonal factor of a matrix's polar decomposition, in bfloat16.

    Singular values become about 1, from 0.7 to 1.2; those below a thousandth of the norm less.

    Parameters
    ----------
    matrix
        Shape ``(rows, columns)``, any floating dtype.
    coefficients, steps, eps
        As ``ns_coefficients``, ``ns_steps`` and ``eps`` of :class:`Muon`.

    References
    ----------
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    first, third, fifth = coefficients
    x = matrix.to(torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()  # so that the product with its transpose is the smaller of the two
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.t() if tall else x


def _move(p: Tensor, direction: Tensor, c: _Constants) -> None:
    rows, columns = p.shape
    if not p.numel():
        return
    scale = math.sqrt(max(1.0, rows / columns))
    if c.adjust_lr_fn == "match_rms_adamw":
        scale = 0.2 * math.sqrt(max(rows, columns))
    update = orthogonalized(direction, c.ns_coefficients, c.ns_steps, c.eps)
    moved = p if p.dtype == torch.float32 else p.float()
    moved.mul_(1.0 - c.lr * c.weight_decay).add_(update, alpha=-c.lr * scale)
    if moved is not p:
        p.copy_(moved)  # a 16-bit parameter is rounded once


def _decoded(state: dict[str, Any]) -> Tensor:
    if "qmap1" not in state:
        average: Tensor = state["state1"]
        return average
    decoded: Tensor = torch.ops.bnbx.dequantize_blockwise(
        state["state1"], state["absmax1"], state["qmap1"], OPTIMIZER_BLOCKSIZE, torch.float32
    )
    return decoded


def _encode(average: Tensor, state: dict[str, Any]) -> None:
    if "qmap1" in state:
        codes, absmax = torch.ops.bnbx.quantize_blockwise(
            average, state["qmap1"], OPTIMIZER_BLOCKSIZE
        )
        state["state1"].copy_(codes)
        state["absmax1"].copy_(absmax)


class Muon8bit(Muon, bits=8):
    """Muon with an 8-bit momentum; the arguments are those of :class:`Muon`."""


class Muon32bit(Muon, bits=32):
    """Muon with a 32-bit momentum; the arguments are those of :class:`Muon`."""
