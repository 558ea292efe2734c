"""What all optimizers of ``bnbx.optim`` share: settings, states, checkpoints and the step."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor

from bnbx.functional.optim import percentile_clipping
from bnbx.ops import FLOAT_DTYPES, RULES, error
from bnbx.optim.checkpoint import read_groups, read_states
from bnbx.optim.manager import GlobalOptimManager
from bnbx.optim.rounding import add_rounding, check_rounding, rounding_of
from bnbx.optim.settings import Options, checked, checked_share
from bnbx.optim.state import QuantizationMaps, bits_of, local, new_state, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT


@dataclasses.dataclass
class _Batch:
    """Parameters that one call of the operation updates."""

    rule: str
    hyperparameters: tuple[float, ...]
    rounding: str | None
    parameters: list[Tensor] = dataclasses.field(default_factory=list)
    gradients: list[Tensor] = dataclasses.field(default_factory=list)
    states: list[dict[str, Any]] = dataclasses.field(default_factory=list)


#: The settings that no constructor has to give, with their values.
_DEFAULT_SETTINGS = {
    "optim_bits": 32,
    "min_8bit_size": 4096,
    "is_paged": False,
    "skip_zeros": False,
    "max_unorm": 0.0,
    "block_wise": True,
    "percentile_clipping": 100,
    "bf16_stochastic_round": False,
    "kahan_sum": False,
}

#: The settings that need the norm of a whole parameter, their value for none, and what they keep.
_NORM_STATES = (("max_unorm", 0.0, "unorm_vec", 1), ("percentile_clipping", 100, "gnorm_vec", 100))

_Constants = tuple[str, tuple[float, ...]]  # rule and hyperparameters


class KbitOptimizer(torch.optim.Optimizer):
    """Base of the optimizers with states of 4, 8 or 32 bits.

    A family is a subclass that names its rule and says which arguments its constructor takes; its
    numbered and paged names are subclasses that only fix ``bits`` and ``paged``::

        class Adam(KbitOptimizer, rule="adam"): ...
        class PagedAdam8bit(Adam, bits=8, paged=True): ...

    Parameters
    ----------
    params
        Parameters or groups of them.
    defaults
        Settings that stand in every group: learning rate, betas...
    settings
        Settings of the optimizer: ``optim_bits``, ``min_8bit_size``, ``max_unorm`` and those that
        have one supported value. A group may have its own value for them.
    args
        An object whose attributes go before ``settings``, or None.
    options
        The constructor's remaining keyword arguments.

    Attributes
    ----------
    args
        The settings in force.
    """

    #: Name of the update rule, one of ``bnbx.ops.RULES``.
    _rule: ClassVar[str]
    #: Bits that the class fixes, if it does.
    _bits: ClassVar[int | None] = None
    #: Whether the class fixes ``is_paged``.
    _paged: ClassVar[bool] = False
    #: How many ``betas`` there are, and what users call the first of them, if not that.
    _beta_count: ClassVar[int] = 2
    _beta_names: ClassVar[tuple[str, ...]] = ()
    #: Why its states cannot have 4 bits, if that is so.
    _why_not_4bit: ClassVar[str] = ""

    def __init_subclass__(
        cls,
        *,
        rule: str | None = None,
        bits: int | None = None,
        paged: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if rule is not None:
            cls._rule = rule
        if bits is not None:
            cls._bits = bits
        if paged:
            cls._paged = True

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        settings: dict[str, Any],
        args: Any,
        options: Options,
    ) -> None:
        if unknown := options.keys() - Options.__annotations__.keys():
            msg = f"{type(self).__name__}() got an unexpected keyword argument {min(unknown)!r}"
            raise TypeError(msg)
        defaults = {**defaults, "maximize": options.get("maximize", False)}
        settings = {**_DEFAULT_SETTINGS, **settings, **options}
        settings.pop("maximize", None)
        settings["optim_bits"] = self._fixed_bits(settings["optim_bits"])
        settings["is_paged"] = self._paged or settings["is_paged"]
        if isinstance(args, dict):
            hint = "Pass types.SimpleNamespace(**args)."
            raise error("args", "an object with attributes", "a dict", hint)
        self.args = SimpleNamespace()
        for key, value in settings.items():
            where = "args." if hasattr(args, key) else ""
            setattr(self.args, key, self._checked(key, getattr(args, key, value), where))
        check_rounding("", vars(self.args))
        self._maps = QuantizationMaps()
        self._placed = True
        super().__init__(
            params, {key: self._checked(key, value) for key, value in defaults.items()}
        )

    @classmethod
    def _fixed_bits(cls, optim_bits: int) -> int:
        """Return the bits that the class fixes; without any, those that were asked for."""
        if cls._bits is None:
            return optim_bits
        if optim_bits not in {32, cls._bits}:  # 32 is the default in the signature
            raise error(
                "optim_bits",
                f"its default, because {cls.__name__} fixes {cls._bits} bits",
                optim_bits,
                "Leave it out, or use the class without a number in its name.",
            )
        return cls._bits

    @classmethod
    def _checked(cls, key: str, value: Any, where: str = "") -> Any:
        """Return a setting's value, checked as ``bnbx.optim.settings.checked`` does and more."""
        value = checked(key, value, where)
        if key == "betas" and len(value) != cls._beta_count:
            expected = f"{cls._beta_count} numbers in [0, 1) for {cls.__name__}"
            raise error(f"{where}betas", expected, repr(value))
        if key == "optim_bits" and value == 4 and cls._why_not_4bit:
            raise error(f"{where}optim_bits", f"8 or 32 for {cls.__name__}", 4, cls._why_not_4bit)
        return value

    @classmethod
    def _with_betas(cls, given: dict[str, Any], betas: Any, where: str = "") -> dict[str, Any]:
        """Return settings with those that name one of the ``betas`` put in its place."""
        names = [name for name in cls._beta_names if name in given]
        if not names:
            return given
        betas = list(given.get("betas", betas))
        for name in names:
            betas[cls._beta_names.index(name)] = checked_share(name, given[name], where)
        return {**{k: v for k, v in given.items() if k not in names}, "betas": tuple(betas)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which may have its own value for any setting.

        Raises
        ------
        ValueError
            If a setting has a value that is not supported, if a parameter that is to be trained is
            not float32, float16 or bfloat16, or if one stands twice in the group.
        """
        where = f"param_groups[{len(self.param_groups)}]"
        group = self._with_betas(param_group, self.defaults["betas"], f"{where}.")
        group = {key: self._checked(key, value, f"{where}.") for key, value in group.items()}
        super().add_param_group(group)
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
        batches: dict[tuple[Any, ...], _Batch] = {}
        known: dict[tuple[int, int], _Constants] = {}
        for p, gradient, state, config in self._with_gradients():
            # Hundreds of parameters have the same settings: their constants are made once, and
            # found by what is quickly compared.
            step = state["step"] + 1
            constants = known.get((id(config), step))
            if constants is None:
                constants = self._rule_of(config), self._hyperparameters(config, step)
                known[id(config), step] = constants
            if config["percentile_clipping"] < 100:
                constants = constants[0], _clipped(constants[1], gradient, state, config)
            rounding = rounding_of(p, config)
            maps = (id(state.get("qmap1")), id(state.get("qmap2")))
            key = (constants, p.device, *maps, rounding)
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = _Batch(*constants, rounding)
            batch.parameters.append(p)
            batch.gradients.append(gradient)
            batch.states.append(state)
        return list(batches.values())

    def _with_gradients(self) -> list[tuple[Tensor, Tensor, dict[str, Any], dict[str, Any]]]:
        """Return parameter, gradient, state and settings of each that has a gradient, checked."""
        overrides = GlobalOptimManager.get_instance().overrides()
        found = []
        for group_number, group in enumerate(self.param_groups):
            shared = {**vars(self.args), **group}
            for number, p in enumerate(group["params"]):
                gradient = p.grad
                if gradient is None:
                    continue
                config = shared
                if overrides and id(p) in overrides:
                    own = self._with_betas(overrides[id(p)], shared["betas"])
                    config = {**shared, **own}
                state = self.state[p]
                if gradient.layout is not torch.strided or not state or _needs_more(config):
                    where = f"param_groups[{group_number}]['params'][{number}]"
                    self._prepare(p, gradient, state, config, where)
                found.append((p, gradient, state, config))
        return found

    def _rule_of(self, config: dict[str, Any]) -> str:  # noqa: ARG002 (a family may have two rules)
        return self._rule

    def _hyperparameters(self, config: dict[str, Any], step: int) -> tuple[float, ...]:  # noqa: ARG002
        """Return the constants of a step from ``lr`` on, in the order of the operation's schema."""
        beta1, beta2, *beta3 = self._checked("betas", config["betas"])
        return (
            float(config["lr"]),
            float(beta1),
            float(beta2),
            float(beta3[0]) if beta3 else 0.0,
            float(config.get("alpha", 0.0)),
            float(config["eps"]),
            float(config["weight_decay"]),
            -1.0 if config["maximize"] else 1.0,
            config["skip_zeros"],
            float(config["max_unorm"]),
        )

    def _prepare(
        self, p: Tensor, g: Tensor, state: dict[str, Any], config: dict[str, Any], where: str
    ) -> None:
        """Refuse what cannot be updated, and make what a state lacks."""
        if g.layout is not torch.strided:
            hint = "Make it dense; embeddings take sparse=False."
            raise error(f"{where}.grad", "a dense gradient", g.layout, hint)
        if not state:
            _check_dtype(where, p)
            state.update(self._new_state(p, config))
        check_rounding(f" of {where}", config)
        add_rounding(p, state, config)
        for setting, off, key, numel in _NORM_STATES:
            if config[setting] == off:
                continue
            if any(not placement.is_replicate() for placement in getattr(p, "placements", ())):
                expected = f"{off} for a parameter of which each process has a shard"
                raise error(f"{setting} of {where}", expected, config[setting])
            if key not in state:
                state[key] = torch.zeros(numel, device=p.device)

    def _new_state(self, p: Tensor, config: dict[str, Any]) -> dict[str, Any]:
        if config["is_paged"] and p.device.type not in {"cpu", "meta"}:
            hint = "Use the class without Paged in its name."
            raise error("is_paged", "False for states on a device other than a CPU", p.device, hint)
        small = p.numel() < config["min_8bit_size"]
        bits = 32 if small else self._checked("optim_bits", config["optim_bits"])
        return new_state(p, bits, RULES[self._rule], self._maps)

    def _update(self, batch: _Batch) -> None:
        states = batch.states

        def column(key: str) -> list[Tensor]:
            return [state[key] for state in states] if key in states[0] else []

        # The kernels write in place, so a parameter with gaps or permuted strides is updated in a
        # copy and keeps its layout; contiguous() of any other is the parameter itself.
        shards = [local(p) for p in batch.parameters]
        targets = [shard.contiguous() for shard in shards]
        gradients = [local(gradient) for gradient in batch.gradients]
        steps = [state["step"] + 1 for state in states]
        limited = batch.hyperparameters[-1] > 0.0
        moments = (
            batch.rule,
            gradients,
            targets,
            column("state1"),
            column("state2"),
            column("unorm_vec") if limited else [],
        )
        rounding = {
            None: (),
            "kahan_sum": (column("compensation"), None),
            "bf16_stochastic_round": (None, [state.get("seed") for state in states]),
        }[batch.rounding]
        bits = bits_of(states[0], shards[0].shape)
        if bits < 32:
            update = (
                torch.ops.bnbx.optimizer_update_4bit_blockwise
                if bits == 4
                else torch.ops.bnbx.optimizer_update_8bit_blockwise
            )
            update(
                *moments,
                states[0]["qmap1"],
                states[0].get("qmap2"),
                column("absmax1"),
                column("absmax2"),
                steps,
                *batch.hyperparameters,
                *rounding,
            )
        else:
            torch.ops.bnbx.optimizer_update_32bit(
                *moments, steps, *batch.hyperparameters, *rounding
            )
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
        groups = read_groups(self.param_groups, saved_groups, self._checked)
        state = read_states(
            self.param_groups,
            saved_groups,
            state_dict.get("state"),
            RULES[self._rule],
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


def _needs_more(config: dict[str, Any]) -> bool:
    norms = config["max_unorm"] > 0.0 or config["percentile_clipping"] < 100
    return bool(norms or config["kahan_sum"] or config["bf16_stochastic_round"])


def _clipped(
    hyperparameters: tuple[float, ...],
    gradient: Tensor,
    state: dict[str, Any],
    config: dict[str, Any],
) -> tuple[float, ...]:
    """Return the constants of a step with the factor on the gradient that clipping leaves."""
    step, percentile = state["step"] + 1, config["percentile_clipping"]
    _, _, scale = percentile_clipping(local(gradient), state["gnorm_vec"], step, percentile)
    sign = hyperparameters[7]
    return (*hyperparameters[:7], sign * float(scale), *hyperparameters[8:])


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
