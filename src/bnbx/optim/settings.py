"""What each setting of an optimizer may be: one table for every way in which one can come.

Constructor arguments, ``args`` objects, parameter groups, overrides and checkpoints are all held
against it.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from bnbx.optim.paging import PagedMemory


class CommonOptions(TypedDict, total=False):
    """Keyword arguments that every optimizer takes beside those in its signature."""

    #: Leave parameter and state alone where the gradient is exactly 0.
    skip_zeros: bool
    #: Go up the gradient and not down.
    maximize: bool
    #: Step in a way that a CUDA graph can capture, with the step counts in tensors.
    capturable: bool
    #: Taken for programs written for old releases of bitsandbytes: True, the only way there is.
    block_wise: bool
    #: Shorten gradients longer than this percentile of the parameter's last 100; 100: none.
    percentile_clipping: int
    #: Keep the states of parameters on a CPU in files of its directory.
    paging: PagedMemory | None
    #: Round parameters of bfloat16 up or down at random, so that small updates count on average.
    bf16_stochastic_round: bool
    #: Keep what rounding parameters to bfloat16 loses in a second bfloat16.
    kahan_sum: bool


class Options(CommonOptions, total=False):
    """The same for the optimizers whose signature has no ``max_unorm``."""

    #: The largest norm of an update, without ``lr``, as a share of the parameter's norm; 0: any.
    max_unorm: float


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_at_least_zero(value: Any) -> bool:
    return _is_number(value) and float(value) >= 0.0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0.0 <= float(value) < 1.0


def _are_betas(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) in {2, 3}
        and all(_is_share(beta) for beta in value)
    )


def _is_step_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value >= 0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: which values it takes, in code and in words, and what to do about others."""

    accepts: Callable[[Any], bool]
    expected: str
    hint: str = ""


def _only(supported: object, hint: str = "Leave it out.") -> Setting:
    return Setting(
        lambda value: bool(value == supported),
        f"{supported!r}, the only value supported so far",
        hint,
    )


def _are_coefficients(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 3 and all(map(_is_number, value))


def _is_ns_step_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 100


_AT_LEAST_ZERO = Setting(_is_at_least_zero, "a number of at least 0")
_SHARE = Setting(_is_share, "a number in [0, 1)")
_FLAG = Setting(lambda value: isinstance(value, bool), "True or False")
_STEPS = Setting(_is_step_count, "a number of steps, or None for no schedule")

SETTINGS: dict[str, Setting] = {
    "lr": _AT_LEAST_ZERO,
    "betas": Setting(_are_betas, "two numbers in [0, 1), three for AdEMAMix"),
    "momentum": _SHARE,
    "dampening": _SHARE,
    "alpha": _AT_LEAST_ZERO,
    "t_alpha": _STEPS,
    "t_beta3": _STEPS,
    "eps": _AT_LEAST_ZERO,
    "weight_decay": _AT_LEAST_ZERO,
    "lr_decay": _AT_LEAST_ZERO,
    "ns_coefficients": Setting(_are_coefficients, "three numbers"),
    "ns_steps": Setting(_is_ns_step_count, "a number of steps from 1 to 99"),
    "adjust_lr_fn": Setting(
        lambda value: value in (None, "original", "match_rms_adamw"),
        "'original', 'match_rms_adamw' or None",
    ),
    "nesterov": _FLAG,
    "maximize": _FLAG,
    "capturable": _FLAG,
    "optim_bits": Setting(
        lambda value: isinstance(value, int) and value in {4, 8, 32}, "4, 8 or 32"
    ),
    "min_8bit_size": Setting(_is_at_least_zero, "a number of elements, at least 0"),
    "skip_zeros": _FLAG,
    "max_unorm": _AT_LEAST_ZERO,
    "is_paged": _FLAG,
    "paging": Setting(
        lambda _: False,
        "nothing, because it is an argument of the optimizer only",
        "Groups and parameters may have their own is_paged.",
    ),
    "amsgrad": _only(supported=False),
    "centered": _only(supported=False),
    "adam_w_mode": _only(supported=True),
    "bias_correction": _only(supported=True),
    "initial_accumulator_value": _only(supported=0),
    "percentile_clipping": Setting(
        lambda value: isinstance(value, int) and 1 <= value <= 100,
        "a percentile from 1 to 100, which is none",
    ),
    "block_wise": _only(supported=True),
    "bf16_stochastic_round": _FLAG,
    "kahan_sum": _FLAG,
}


def _parsed(value: object) -> object:
    """Return the numbers in a string such as ``"(0.9, 0.999)"``, how command lines give betas."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(beta) for beta in value.strip().strip("()").split(","))
    except ValueError:
        return value


def checked(key: str, value: Any, where: str = "") -> Any:
    """Return the value of a setting, betas parsed if they are a string.

    Parameters
    ----------
    key
        Name of the setting. Names that are not in ``SETTINGS`` are other people's: anything goes.
    value
        What was given for it.
    where
        Prefix of the name in the error, such as ``"param_groups[1]."``.

    Raises
    ------
    ValueError
        If the setting does not take the value.
    """
    if key == "betas":
        value = _parsed(value)
    setting = SETTINGS.get(key)
    if setting is not None and not setting.accepts(value):
        raise error(f"{where}{key}", setting.expected, repr(value), setting.hint)
    return value


def checked_share(key: str, value: Any, where: str = "") -> Any:
    """Return a value if it is a number in [0, 1); raise ``ValueError`` with its name otherwise."""
    if not _is_share(value):
        raise error(f"{where}{key}", _SHARE.expected, repr(value))
    return value
