"""Settings that differ from the optimizer's for single parameters."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bnbx.ops import error
from bnbx.optim.settings import SETTINGS, checked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.nn import Module


def _checked_config(argument: str, config: dict[str, Any]) -> dict[str, Any]:
    for key in config:
        if key not in SETTINGS:
            raise error(argument, f"settings among {tuple(SETTINGS)}", repr(key))
    return {key: checked(key, value) for key, value in config.items()}


def _tensors(argument: str, values: Any) -> list[Tensor]:
    tensors = [values] if isinstance(values, Tensor) else list(values)
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise error(f"{argument}[{i}]", "a tensor", type(tensor).__name__)
    return tensors


class GlobalOptimManager:
    """Overrides of settings for single parameters, seen by every optimizer of ``bnbx.optim``.

    An override belongs to the parameter, not to its address or its place in an optimizer: it ends
    with the parameter, and neither parameters nor modules are kept alive by it. Settings such as
    ``lr`` apply from the next step; ``optim_bits`` and ``min_8bit_size`` decide how a state is
    made, so they must be overridden before the parameter's first step.

    A group of parameters that differs needs no override: ``{"params": [...], "optim_bits": 32}`` in
    the list given to the optimizer does the same.

    Examples
    --------
    >>> manager = GlobalOptimManager.get_instance()
    >>> manager.override_config(model.embedding.weight, "optim_bits", 32)
    >>> optimizer = Adam8bit(model.parameters())
    """

    _instance: ClassVar[GlobalOptimManager | None] = None

    _by_parameter: WeakTensorKeyDictionary
    _by_module: list[tuple[weakref.ref[Module], str, dict[str, Any]]]

    def __init__(self) -> None:
        msg = "There is one manager for all optimizers: call GlobalOptimManager.get_instance()."
        raise RuntimeError(msg)

    def initialize(self) -> None:
        """Forget every override."""
        self._by_parameter = WeakTensorKeyDictionary()
        self._by_module = []

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """Return the one manager."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def register_parameters(self, params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> None:
        """Check that ``params`` are parameters or groups of them; overrides need no registration.

        It stands here for programs written for bitsandbytes, which finds overridden parameters by
        the place they were registered at.

        Parameters
        ----------
        params
            What an optimizer takes: parameters, or dicts with the key ``"params"``.

        Raises
        ------
        ValueError
            If there is something else among them.
        """
        for i, entry in enumerate(params):
            if isinstance(entry, dict):
                _tensors(f"params[{i}]['params']", entry["params"])
            else:
                _tensors(f"params[{i}]", [entry])

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: Any = None,
        key_value_dict: dict[str, Any] | None = None,
    ) -> None:
        """Override settings for parameters; several overrides of one parameter add up.

        Parameters
        ----------
        parameters
            One parameter or several.
        key, value
            The setting, such as ``"optim_bits"``, ``"lr"`` or ``"betas"``, and its value.
        key_value_dict
            Several settings at once, in place of ``key`` and ``value``.

        Raises
        ------
        ValueError
            If a setting does not exist or does not take its value, or if both ways are used.
        """
        if (key is None) == (key_value_dict is None):
            raise error("key", "either key and value or key_value_dict", (key, key_value_dict))
        config = {key: value} if key is not None else dict(key_value_dict or {})
        config = _checked_config("key" if key is not None else "key_value_dict", config)
        for p in _tensors("parameters", parameters):
            self._by_parameter[p] = {**self._by_parameter.get(p, {}), **config}

    def register_module_override(
        self, module: Module, param_name: str, config: dict[str, Any]
    ) -> None:
        """Override settings for whatever parameter ``module`` has under a name at each step.

        It holds for a parameter that is put in the place of the present one later. Overrides made
        for the parameter itself go first.

        Parameters
        ----------
        module
            The module.
        param_name
            Name of its attribute, such as ``"weight"``.
        config
            The settings, such as ``{"optim_bits": 32}``.

        Raises
        ------
        ValueError
            If the module has no such parameter, or if a setting does not exist or does not take its
            value.
        """
        if not isinstance(getattr(module, param_name, None), Tensor):
            got = type(getattr(module, param_name, None)).__name__
            raise error("param_name", f"a parameter of {type(module).__name__}", got)
        config = _checked_config("config", config)
        self._by_module = [entry for entry in self._by_module if entry[0]() is not None]
        self._by_module.append((weakref.ref(module), param_name, config))

    def overrides(self) -> dict[int, dict[str, Any]]:
        """Return the settings overridden at this moment, by ``id`` of the parameter.

        An id is good for as long as the caller holds the parameter, so look parameters up at once.
        """
        configs: dict[int, dict[str, Any]] = {}
        for reference, name, config in self._by_module:
            p = getattr(reference(), name, None)
            if p is not None:
                configs[id(p)] = {**configs.get(id(p), {}), **config}
        for p, config in self._by_parameter.items():
            configs[id(p)] = {**configs.get(id(p), {}), **config}
        return configs
