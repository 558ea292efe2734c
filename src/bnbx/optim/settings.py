"""What each setting of an optimizer may be: one table for every way in which one can come.

Constructor arguments, ``args`` objects, parameter groups, overrides and checkpoints are all held
against it.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Callable


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_at_least_zero(value: Any) -> bool:
    return _is_number(value) and float(value) >= 0.0


def _are_betas(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(_is_number(beta) and 0.0 <= float(beta) < 1.0 for beta in value)
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: which values it takes, in code and in words, and what to do about others."""

    accepts: Callable[[Any], bool]
    expected: str
    hint: str = ""


def _only(*, supported: object) -> Setting:
    return Setting(
        lambda value: bool(value == supported),
        f"{supported!r}, the only value supported so far",
        "Leave it out.",
    )


SETTINGS: dict[str, Setting] = {
    "lr": Setting(_is_at_least_zero, "a number of at least 0"),
    "betas": Setting(_are_betas, "two numbers in [0, 1)"),
    "eps": Setting(_is_at_least_zero, "a number of at least 0"),
    "weight_decay": Setting(_is_at_least_zero, "a number of at least 0"),
    "optim_bits": Setting(lambda value: isinstance(value, int) and value in {8, 32}, "8 or 32"),
    "min_8bit_size": Setting(_is_at_least_zero, "a number of elements, at least 0"),
    "skip_zeros": Setting(lambda value: isinstance(value, bool), "True or False"),
    "amsgrad": _only(supported=False),
    "is_paged": _only(supported=False),
    "percentile_clipping": _only(supported=100),
    "block_wise": _only(supported=True),
    "max_unorm": _only(supported=0.0),
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
