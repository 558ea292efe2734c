"""Progress bars, if tqdm is installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class Progress:
    """A bar on standard error; a context manager.

    Parameters
    ----------
    total
        What is to be done, in ``unit``.
    title
        What stands before the bar.
    unit
        ``"B"`` for bytes, which get a prefix, or the name of a thing.
    show
        Whether to show it at all. Without tqdm, or if standard error is no terminal, it is not.
    """

    def __init__(self, total: int, title: str, unit: str, *, show: bool) -> None:
        self._bar = None
        if show and importlib.util.find_spec("tqdm") is not None:
            self._bar = importlib.import_module("tqdm").tqdm(
                total=total,
                desc=title,
                unit=unit,
                unit_scale=unit == "B",
                disable=None,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, done: int, note: str = "") -> None:
        """Move the bar by ``done`` and show what is being worked on."""
        if self._bar is not None:
            self._bar.set_postfix_str(note[-40:], refresh=False)
            self._bar.update(done)
