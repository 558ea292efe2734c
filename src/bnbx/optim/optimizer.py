"""What all optimizers of ``bnbx.optim`` share: settings, states, checkpoints and the step."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor

from bnbx.ops import FLOAT_DTYPES, error
from bnbx.optim.checkpoint import read_groups, read_states
from bnbx.optim.manager import GlobalOptimManager
from bnbx.optim.settings import checked
from bnbx.optim.state import STATE_DTYPES, QuantizationMaps, local, new_state, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT


@dataclasses.dataclass
class _Batch:
    """Parameters that one call of the operation updates."""

    hyperparameters: tuple[float, ...]
    parameters: list[Tensor] = dataclasses.field(default_factory=list)
    gradients: list[Tensor] = dataclasses.field(default_factory=list)
    states: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class KbitOptimizer(torch.optim.Optimizer):
    """Base of the optimizers with 8-bit or 32-bit states.

    A family is a subclass that names its rule and says which arguments its constructor takes; its
    8-bit and 32-bit names are subclasses that only fix ``bits``::

        class Adam(KbitOptimizer, rule="adam"): ...
        class Adam8bit(Adam, bits=8): ...

    Parameters
    ----------
    params
        Parameters or groups of them.
    defaults
        Settings that stand in every group: learning rate, betas...
    settings
        Settings of the optimizer: ``optim_bits``, ``min_8bit_size``, ``skip_zeros`` and those that
        have one supported value. A group may have its own value for them.
    args
        An object whose attributes go before ``settings``, or None.

    Attributes
    ----------
    args
        The settings in force.
    """

    #: Name of the update rule, one of ``bnbx.ops.OPTIMIZERS``.
    _rule: ClassVar[str]
    #: Bits that the class fixes, if it does.
    _bits: ClassVar[int | None] = None
    #: For each of state1, state2..., whether it can be negative.
    _signed_states: ClassVar[tuple[bool, ...]] = (True, False)

    def __init_subclass__(
        cls, *, rule: str | None = None, bits: int | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if rule is not None:
            cls._rule = rule
        if bits is not None:
            cls._bits = bits

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], settings: dict[str, Any], args: Any = None
    ) -> None:
        settings = {**settings, "max_unorm": 0.0}
        if self._bits is not None:
            settings["optim_bits"] = self._fixed_bits(settings["optim_bits"])
        if isinstance(args, dict):
            hint = "Pass types.SimpleNamespace(**args)."
            raise error("args", "an object with attributes", "a dict", hint)
        self.args = SimpleNamespace()
        for key, value in settings.items():
            where = "args." if hasattr(args, key) else ""
            setattr(self.args, key, checked(key, getattr(args, key, value), where))
        self._maps = QuantizationMaps()
        self._placed = True
        super().__init__(params, {key: checked(key, value) for key, value in defaults.items()})

    @classmethod
    def _fixed_bits(cls, optim_bits: int) -> int | None:
        if optim_bits != 32:
            raise error(
                "optim_bits",
                f"its default, 32, because {cls.__name__} fixes {cls._bits} bits",
                optim_bits,
                "Leave it out, or use the class without a number in its name.",
            )
        return cls._bits

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which may have its own value for any setting.

        Raises
        ------
        ValueError
            If a setting has a value that is not supported, if a parameter that is to be trained is
            not float32, float16 or bfloat16, or if one stands twice in the group.
        """
        where = f"param_groups[{len(self.param_groups)}]"
        for key, value in param_group.items():
            param_group[key] = checked(key, value, f"{where}.")
        super().add_param_group(param_group)
        try:
            _check_parameters(where, self.param_groups[-1]["params"])
        except ValueError:
            self.param_groups.pop()
            raise

    # The step --------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure
            Evaluates the model again and returns the loss.

        Returns
        -------
        float or None
            What the closure returned.

        Raises
        ------
        ValueError
            If a gradient is sparse or a parameter has a dtype that is not supported. Nothing is
            updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._place_states()
        for batch in self._batches():
            self._update(batch)
        return loss

    def _batches(self) -> list[_Batch]:
        """Sort the parameters that have gradients by what one call of the operation can share."""
        overrides = GlobalOptimManager.get_instance().overrides()
        batches: dict[tuple[Any, ...], _Batch] = {}
        for group_number, group in enumerate(self.param_groups):
            config = {**vars(self.args), **group}
            shared = self._hyperparameters(config)
            for number, p in enumerate(group["params"]):
                gradient = p.grad
                if gradient is None:
                    continue
                if gradient.layout is not torch.strided:
                    where = f"param_groups[{group_number}]['params'][{number}].grad"
                    hint = "Make it dense; embeddings take sparse=False."
                    raise error(where, "a dense gradient", gradient.layout, hint)
                own, hyperparameters = config, shared
                if overrides and id(p) in overrides:
                    own = {**config, **overrides[id(p)]}
                    hyperparameters = self._hyperparameters(own)
                state = self.state[p]
                if not state:
                    _check_dtype(f"param_groups[{group_number}]['params'][{number}]", p)
                    state.update(self._new_state(p, own))
                key = (hyperparameters, p.device, id(state.get("qmap1")), id(state.get("qmap2")))
                batch = batches.get(key)
                if batch is None:
                    batch = batches[key] = _Batch(hyperparameters)
                batch.parameters.append(p)
                batch.gradients.append(gradient)
                batch.states.append(state)
        return list(batches.values())

    def _hyperparameters(self, config: dict[str, Any]) -> tuple[float, ...]:
        """Return lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale and skip_zeros."""
        beta1, beta2 = config["betas"]
        return (
            float(config["lr"]),
            float(beta1),
            float(beta2),
            0.0,
            0.0,
            float(config["eps"]),
            float(config["weight_decay"]),
            1.0,
            config["skip_zeros"],
        )

    def _new_state(self, p: Tensor, config: dict[str, Any]) -> dict[str, Any]:
        dtype = STATE_DTYPES[checked("optim_bits", config["optim_bits"])]
        if p.numel() < config["min_8bit_size"]:
            dtype = torch.float32
        return new_state(p, dtype, self._signed_states, self._maps)

    def _update(self, batch: _Batch) -> None:
        states = batch.states

        def column(key: str) -> list[Tensor]:
            return [state[key] for state in states]

        # The kernels write in place, so a parameter with gaps or permuted strides is updated in a
        # copy and keeps its layout; contiguous() of any other is the parameter itself.
        shards = [local(p) for p in batch.parameters]
        targets = [shard.contiguous() for shard in shards]
        gradients = [local(gradient) for gradient in batch.gradients]
        steps = [state["step"] + 1 for state in states]
        moments = (self._rule, gradients, targets, column("state1"), column("state2"))
        if "qmap1" in states[0]:
            torch.ops.bnbx.optimizer_update_8bit_blockwise(
                *moments,
                states[0]["qmap1"],
                states[0]["qmap2"],
                column("absmax1"),
                column("absmax2"),
                steps,
                *batch.hyperparameters,
            )
        else:
            torch.ops.bnbx.optimizer_update_32bit(*moments, steps, *batch.hyperparameters)
        for shard, target in zip(shards, targets, strict=True):
            if target is not shard:
                shard.copy_(target)
        # Kernels write past autograd, which must know that values saved for backward have changed.
        torch.autograd.graph.increment_version(batch.parameters)
        for state, step in zip(states, steps, strict=True):
            state["step"] = step

    def _place_states(self) -> None:
        """Put loaded states where their parameters are, and let equal maps be one tensor."""
        if self._placed:
            return
        for p, state in self.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    moved = value.to(p.device)
                    state[key] = self._maps.share(moved) if key.startswith("qmap") else moved
        self._placed = True

    # Checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer as bitsandbytes lays it out.

        Returns
        -------
        dict
            ``"param_groups"`` as every torch optimizer has them, and ``"state"``: for each
            parameter its ``step`` and, under the key ``"__bnb_optimizer_quant_state__"``, its
            tensors. They are the optimizer's own, not copies.
        """
        state_dict = super().state_dict()
        state = {key: wrapped(value) for key, value in state_dict["state"].items()}
        return {**state_dict, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Load a copy of a state, saved by this optimizer or by that of bitsandbytes.

        Parameters
        ----------
        state_dict
            What ``state_dict()`` returned; the tensors of a parameter may also lie beside ``step``.
        move_to_device
            Move the state to the device of its parameter now and not at the next step.

        Raises
        ------
        ValueError
            If groups, parameters, dtypes or sizes do not fit this optimizer, with the name of the
            entry. The optimizer is as before then.
        """
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = pre_hook(self, state_dict)
            state_dict = state_dict if result is None else result
        saved_groups: Any = state_dict.get("param_groups")
        groups = read_groups(self.param_groups, saved_groups)
        state = read_states(
            self.param_groups,
            saved_groups,
            state_dict.get("state"),
            len(self._signed_states),
            move_to_device,
        )
        self.__setstate__({"state": state, "param_groups": groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        overrides = GlobalOptimManager.get_instance().overrides()
        overridden = [
            (p, overrides[id(p)])
            for group in self.param_groups
            for p in group["params"]
            if id(p) in overrides
        ]
        return {**super().__getstate__(), "args": self.args, "overrides": overridden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        overridden = state.pop("overrides", [])
        super().__setstate__(state)
        self._maps = QuantizationMaps()
        self._placed = False
        for p, config in overridden:
            GlobalOptimManager.get_instance().override_config(p, key_value_dict=config)


def _check_parameters(where: str, parameters: list[Tensor]) -> None:
    if len(set(parameters)) != len(parameters):
        raise error(f"{where}['params']", "each parameter once", "one of them twice")
    for number, p in enumerate(parameters):
        if p.requires_grad:
            _check_dtype(f"{where}['params'][{number}]", p)


def _check_dtype(where: str, p: Tensor) -> None:
    if p.dtype not in FLOAT_DTYPES:
        expected = "a parameter of float32, float16 or bfloat16"
        raise error(where, expected, p.dtype, "Leave it out, or set requires_grad to False.")
