"""What all optimizers of ``bnbx.optim`` share: settings, states, checkpoints and the step."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from bnbx.ops import FLOAT_DTYPES, RULES, error
from bnbx.optim.batch import Batch, Batches, Constants
from bnbx.optim.capture import counted_on_host, live_numbers, refuse_uncaptured
from bnbx.optim.checkpoint import read_groups, read_states
from bnbx.optim.extras import (
    add_extras,
    check_rounding,
    last_arguments,
    needs_more,
    refuse_sparse,
)
from bnbx.optim.manager import GlobalOptimManager
from bnbx.optim.paging import Pages, paged_memory, paged_parameters
from bnbx.optim.settings import Options, checked, checked_share
from bnbx.optim.state import QuantizationMaps, bits_of, locals_of, new_state, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

    from bnbx.ops import OptimizerState


#: The settings that no constructor has to give, with their values.
DEFAULT_SETTINGS = {
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

    #: Name of the update rule, one of ``bnbx.ops.RULES``, and the states that it keeps.
    _rule: ClassVar[str]
    _kept: ClassVar[tuple[OptimizerState, ...]]
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
            cls._kept = RULES[rule]
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
        flags = {key: options.get(key, False) for key in ("maximize", "capturable")}
        defaults = {**defaults, **flags}
        settings = {**DEFAULT_SETTINGS, **settings, **options}
        settings = {key: value for key, value in settings.items() if key not in flags}
        paging = settings.pop("paging", None)
        settings["optim_bits"] = self._fixed_bits(settings["optim_bits"])
        settings["is_paged"] = self._paged or paging is not None or settings["is_paged"]
        if isinstance(args, dict):
            hint = "Pass types.SimpleNamespace(**args)."
            raise error("args", "an object with attributes", "a dict", hint)
        self.args = SimpleNamespace()
        for key, value in settings.items():
            where = "args." if hasattr(args, key) else ""
            setattr(self.args, key, self._checked(key, getattr(args, key, value), where))
        check_rounding("", vars(self.args))
        self._paging = paged_memory(paging, self.args.is_paged)
        self._pages = Pages(self._paging)
        self._maps = QuantizationMaps()
        self._placed = True
        super().__init__(
            params, {key: self._checked(key, value) for key, value in defaults.items()}
        )

    @property
    def is_paged(self) -> bool:
        """Whether states are made in paged memory."""
        return bool(self.args.is_paged)

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
        group = self._with_betas(param_group, self.defaults.get("betas"), f"{where}.")
        group = {key: self._checked(key, value, f"{where}.") for key, value in group.items()}
        super().add_param_group(group)
        try:
            self._check_parameters(where, self.param_groups[-1]["params"])
        except ValueError:
            self.param_groups.pop()
            raise

    @classmethod
    def _check_parameters(cls, where: str, parameters: list[Tensor]) -> None:
        if len(set(parameters)) != len(parameters):
            raise error(f"{where}['params']", "each parameter once", "one of them twice")
        for number, p in enumerate(parameters):
            if p.requires_grad:
                cls._check_parameter(f"{where}['params'][{number}]", p)

    @classmethod
    def _check_parameter(cls, where: str, p: Tensor) -> None:
        """Refuse a parameter that cannot be trained; a family may refuse more."""
        if p.dtype not in FLOAT_DTYPES:
            expected = "a parameter of float32, float16 or bfloat16"
            raise error(where, expected, p.dtype, "Leave it out, or set requires_grad to False.")

    # The step --------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # A step is one call of the kernels already. Traced, it would be compiled again for each count.
    @_disable_dynamo  # torch.compiler.disable would load dynamo as soon as bnbx is imported
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
            If a gradient is sparse, if a parameter has a dtype that is not supported, or if paged
            states cannot be made or are lost. Nothing is updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._pages.check_step()
        self._place_states()
        for batch in self._batches():
            for start, stop in self._pages.turns(batch.states, batch.device):
                self._update(batch.part(start, stop))
        return loss

    def _batches(self) -> list[Batch]:
        """Sort the parameters that have gradients by what one call of the operation can share."""
        batches = Batches(self._rule_and_constants)
        overrides = GlobalOptimManager.get_instance().overrides()
        special = []
        for group_number, group in enumerate(self.param_groups):
            shared = {**vars(self.args), **group}
            more, batch = needs_more(shared), None  # the batch of the parameter before
            for number, p in enumerate(group["params"]):
                gradient = p.grad
                if gradient is None:
                    continue
                config, needed = shared, more
                if overrides and id(p) in overrides:
                    own = self._with_betas(overrides[id(p)], shared.get("betas"))
                    config = {**shared, **own}
                    needed = needs_more(config)
                state = self.state[p]
                if needed or not state or gradient.layout is not torch.strided:
                    where = f"param_groups[{group_number}]['params'][{number}]"
                    self._prepare(p, gradient, state, config, where)
                if needed:
                    special.append((p, gradient, state, config))
                    continue
                # Of hundreds of parameters most differ in nothing that matters from the one before.
                # Quantization maps lie where their parameters do.
                if (
                    batch is None
                    or config is not batch.config
                    or state["step"] != batch.step
                    or state.get("qmap1") is not batch.qmap1
                    or state.get("qmap2") is not batch.qmap2
                    or (batch.qmap1 is None and p.device != batch.device)
                ):
                    batch = batches.of(p, state, config)
                batch.add(p, gradient, state)
        for p, gradient, state, config in special:  # when nothing can be refused any more
            batches.of(p, state, config).add(p, gradient, state)
        return batches.all()

    def _rule_of(self, config: dict[str, Any]) -> str:  # noqa: ARG002 (a family may have two rules)
        return self._rule

    def _rule_and_constants(self, config: dict[str, Any], step: Any) -> Constants:
        return self._rule_of(config), self._constants(config, step)

    def _constants(self, config: dict[str, Any], step: int | None) -> tuple[Any, ...]:
        if step is not None:
            return self._hyperparameters(config, step)
        # Kernels read those that change when they run: see live_numbers.
        numbers = self._hyperparameters({**config, "lr": 0.0}, 1)
        _, beta1, beta2, _, _, eps, weight_decay, _, *others = numbers
        return 0.0, beta1, beta2, 0.0, 0.0, eps, weight_decay, 1.0, *others

    def _hyperparameters(self, config: dict[str, Any], step: Any) -> tuple[Any, ...]:  # noqa: ARG002
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
        refuse_sparse(f"{where}.grad", g)
        if not state:
            self._check_parameter(where, p)
            state.update(self._new_state(p, config))
        add_extras(p, state, config, where, self._zeros(p, config))

    def _zeros(self, p: Tensor, config: dict[str, Any]) -> Callable[..., Tensor]:
        return self._pages.zeros_for(p) if config["is_paged"] else torch.zeros

    def _new_state(self, p: Tensor, config: dict[str, Any]) -> dict[str, Any]:
        small = p.numel() < config["min_8bit_size"]
        bits = 32 if small else self._checked("optim_bits", config["optim_bits"])
        with self._pages.all_or_nothing():
            return new_state(p, bits, self._kept, self._maps, self._zeros(p, config))

    def _update(self, batch: Batch) -> None:
        states = batch.states

        def column(key: str) -> list[Tensor]:
            return list(map(operator.itemgetter(key), states)) if key in states[0] else []

        # The kernels write in place, so a parameter with gaps or permuted strides is updated in a
        # copy and keeps its layout.
        targets = shards = locals_of(batch.parameters)
        gradients = batch.gradients if shards is batch.parameters else locals_of(batch.gradients)
        if not all(map(Tensor.is_contiguous, shards)):
            targets = [shard.contiguous() for shard in shards]
        counts = []
        if not batch.is_counted_on_device:
            refuse_uncaptured(batch.parameters[0])
            counts = [state["step"] + 1 for state in states]
        live = live_numbers(batch, gradients, self._hyperparameters) if batch.is_live else None
        steps = counts if live is None else []
        limited = batch.hyperparameters[-1] > 0.0
        moments = (
            gradients,
            targets,
            column("state1"),
            column("state2"),
            column("unorm_vec") if limited else [],
        )
        last = last_arguments(batch.rounding, states, live)
        ops: Any = torch.ops.bnbx
        bits = bits_of(states[0], shards[0].shape)
        if bits < 32:
            ops.optimizer_update_blockwise(
                batch.rule,
                bits,
                *moments,
                states[0]["qmap1"],
                states[0].get("qmap2"),
                column("absmax1"),
                column("absmax2"),
                steps,
                *batch.hyperparameters,
                *last,
            )
        else:
            ops.optimizer_update_32bit(batch.rule, *moments, steps, *batch.hyperparameters, *last)
        if targets is not shards:
            for shard, target in zip(shards, targets, strict=True):
                if target is not shard:
                    shard.copy_(target)
        # Kernels write past autograd, which must know that values saved for backward have changed.
        torch.autograd.graph.increment_version(batch.parameters)
        if batch.is_counted_on_device:
            torch._foreach_add_([state["step"] for state in states], 1)
        for state, count in zip(states, counts, strict=False):
            state["step"] = count

    def _place_states(self) -> None:
        """Put loaded states where their parameters are, and let equal maps be one tensor."""
        if self._placed:
            return
        paged = paged_parameters(self.param_groups, self.args)
        for p, state in self.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    moved = value.to(p.device)
                    moved = self._pages.place(moved) if p in paged else moved
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
        self._pages.check()
        state_dict = super().state_dict()
        state = {key: wrapped(counted_on_host(value)) for key, value in state_dict["state"].items()}
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
        pages = Pages(self._paging)
        paged = paged_parameters(groups, self.args)
        state = read_states(
            self.param_groups,
            saved_groups,
            state_dict.get("state"),
            self._kept,
            move_to_device,
            lambda p: pages.zeros_for(p) if p in paged else torch.empty,
        )
        self.__setstate__({"state": state, "param_groups": groups, "_pages": pages})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        self._pages.check()
        overrides = GlobalOptimManager.get_instance().overrides()
        overridden = [
            (p, overrides[id(p)])
            for group in self.param_groups
            for p in group["params"]
            if id(p) in overrides
        ]
        own = {"args": self.args, "_paging": self._paging, "overrides": overridden}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        overridden = state.pop("overrides", [])
        super().__setstate__(state)
        self._pages = state.get("_pages") or Pages(self._paging)
        self._maps = QuantizationMaps()
        self._placed = False
        for p, config in overridden:
            GlobalOptimManager.get_instance().override_config(p, key_value_dict=config)
