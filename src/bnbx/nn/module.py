"""What the modules with a quantized weight have in common: moving, copying and loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.nn.parameter import QuantizedParameter
from bnbx.ops import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


class QuantizedModule(torch.nn.Module):
    """A module whose ``weight`` is a ``QuantizedParameter``.

    FSDP replaces the weight by a plain tensor or a DTensor. What belongs to it besides its data is
    then taken from the module, which is why the module keeps it as well.
    """

    weight: Tensor

    def _parameter(self, name: str) -> Any:
        """Return ``self.<name>``, without the walk on which nn.Module looks for attributes.

        The attribute is no parameter where FSDP or a parametrization has replaced it.
        """
        parameters = self._parameters
        return parameters[name] if name in parameters else getattr(self, name)

    def _weight_shape(self) -> tuple[int, int]:
        """Return the weight's shape before quantization."""
        raise NotImplementedError

    def _adopt_weight(self) -> None:
        """Take over the statistics of the weight, if it is a QuantizedParameter."""
        raise NotImplementedError

    def _is_of_weight(self, name: str) -> bool:
        """Whether an entry of a checkpoint belongs to the weight."""
        raise NotImplementedError

    def _read_weight(self, entries: dict[str, Tensor], *, copy: bool) -> QuantizedParameter:
        """Make a weight of a checkpoint's entries; a copy goes where the present weight is."""
        raise NotImplementedError

    def _read_statistics(self, entries: dict[str, Tensor]) -> None:
        """Take over a checkpoint's statistics, for a weight that FSDP holds."""
        raise NotImplementedError

    def _not_quantized(self) -> RuntimeError:
        name = type(self).__name__
        return RuntimeError(f"{name}.weight is not quantized yet: call .to(device) on the {name}.")

    def _float_entry(self, weight: Tensor, missing: str) -> Tensor:
        """Check an entry ``weight`` that comes without statistics, and return it."""
        shape = self._weight_shape()
        if not weight.is_floating_point() or tuple(weight.shape) != shape:
            expected = f"floating point of shape {shape}, or quantized data together with {missing}"
            got = f"{weight.dtype} of shape {tuple(weight.shape)} alone"
            raise error("weight", expected, got)
        return weight

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if name == "weight":
            self._adopt_weight()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._adopt_weight()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self._parameters.get("weight")
        if not isinstance(before, QuantizedParameter):
            return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
        kind, settings = type(before), before.settings()

        def plain(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if not isinstance(applied, QuantizedParameter):
                return applied
            settings.update(applied.settings())
            return applied.plain()

        super()._apply(plain, recurse)  # type: ignore[no-untyped-call]
        after = self.weight
        if not isinstance(after, kind):
            # torch assigns new data to the parameter where it can; to and from the meta device it
            # puts a plain parameter in its place.
            settings["requires_grad"] = after.requires_grad
            self.weight = weight = kind(after.detach(), **settings)
            weight._follow(after.device)
        self._adopt_weight()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load the module completely or, if anything is wrong with its entries, not at all."""
        assign = local_metadata.get("assign_to_params_buffers", False)
        held_back = self.weight if isinstance(self.weight, QuantizedParameter) else None
        if held_back is not None:
            self._parameters["weight"] = None
        before = {k: (p, p.detach().clone()) for k, p in self._parameters.items() if p is not None}
        missing: list[str] = []
        unexpected: list[str] = []
        problems: list[str] = []
        try:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing, unexpected, problems
            )
        finally:
            if held_back is not None:
                self._parameters["weight"] = held_back
        names = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        entries = {name: state_dict[prefix + name] for name in names if self._is_of_weight(name)}
        unexpected = [key for key in unexpected if key.removeprefix(prefix) not in entries]
        if strict and held_back is not None and not entries:
            missing.append(prefix + "weight")
        if entries and not (missing or unexpected or problems):
            try:
                self._load_weight(held_back, entries, assign)
            except ValueError as failure:
                problems.append(f'While loading "{prefix}weight": {failure}')
        if missing or unexpected or problems:
            self._restore(before)
        missing_keys += missing
        unexpected_keys += unexpected
        error_msgs += problems

    def _load_weight(
        self, weight: QuantizedParameter | None, entries: dict[str, Tensor], assign: bool
    ) -> None:
        if weight is None:
            self._read_statistics(entries)
            return
        if "weight" not in entries:
            raise error("weight", "an entry", f"only {sorted(entries)}")
        if weight.is_meta and not assign:
            hint = "Pass assign=True to load_state_dict."
            raise error("assign", "True, because the module is on the meta device", False, hint)
        new = self._read_weight(entries, copy=not assign)
        if assign:
            self.weight = new
        else:
            # The parameter stays the same one, for optimizers and for what it is tied to.
            weight.replace_data(new.plain())
            weight.adopt(new)
            self._adopt_weight()

    def _restore(self, before: dict[str, tuple[torch.nn.Parameter, Tensor]]) -> None:
        for name, (parameter, value) in before.items():
            self._parameters[name] = parameter
            parameter.data.copy_(value)
