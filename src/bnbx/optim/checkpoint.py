"""Reading saved states of optimizers: everything is checked and copied before anything is used."""

from __future__ import annotations

import collections
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.ops import error
from bnbx.optim.state import WRAPPER, TensorSpec, bits_of, local, tensor_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bnbx.ops import OptimizerState

    Check = Callable[[str, Any, str], Any]
    New = Callable[..., Tensor]  # makes a tensor from shape, dtype and device

Groups = list[dict[str, Any]]
States = dict[Tensor, dict[str, Any]]


def read_groups(groups: Groups, saved_groups: Any, checked: Check) -> Groups:
    """Return the optimizer's ``groups`` with the settings of the saved ones.

    Parameters
    ----------
    groups
        The optimizer's groups.
    saved_groups
        The saved groups.
    checked
        Returns the value of a setting, from its name, its value and where it stands.

    Raises
    ------
    ValueError
        If the number of groups or of parameters in one differs, or if a setting is not supported.
    """
    where = "state_dict['param_groups']"
    if not isinstance(saved_groups, list):
        raise error(where, "a list", type(saved_groups).__name__)
    if len(saved_groups) != len(groups):
        raise error(where, f"{len(groups)} groups, as the optimizer has", len(saved_groups))
    return [
        _read_group(f"{where}[{number}]", group, saved, checked)
        for number, (group, saved) in enumerate(zip(groups, saved_groups, strict=True))
    ]


def _read_group(where: str, group: dict[str, Any], saved: Any, checked: Check) -> dict[str, Any]:
    if not isinstance(saved, dict) or not isinstance(saved.get("params"), list):
        raise error(where, "a dict with a list 'params'", repr(saved))
    count = len(group["params"])
    if len(saved["params"]) != count:
        expected = f"{count} parameters, as the optimizer's group has"
        raise error(f"{where}['params']", expected, len(saved["params"]))
    settings = {key: value for key, value in saved.items() if key != "params"}
    settings = {key: checked(key, value, f"{where}.") for key, value in settings.items()}
    return {**group, **copy.deepcopy(settings)}


def read_states(
    groups: Groups,
    saved_groups: Groups,
    saved_states: Any,
    states: Sequence[OptimizerState],
    move_to_device: bool,
    new_for: Callable[[Tensor], New] = lambda _: torch.empty,
) -> States:
    """Return copies of the saved states by parameter.

    Parameters
    ----------
    groups
        The optimizer's groups.
    saved_groups
        The saved groups, which ``read_groups`` has checked.
    saved_states
        The saved states by number of the parameter.
    states
        What the optimizer's rule keeps as ``state1``, ``state2``...
    move_to_device
        Put the copies on the device of the parameter and not where the saved tensors are.
    new_for
        Returns what makes the tensors for the state of a parameter.

    Raises
    ------
    ValueError
        If a state belongs to no parameter, or if an entry of it is missing or does not fit.
    """
    where = "state_dict['state']"
    if not isinstance(saved_states, dict):
        raise error(where, "a dict", type(saved_states).__name__)
    parameters = dict(_numbered(groups, saved_groups))
    loaded: States = collections.defaultdict(dict)
    for number, saved in _by_number(saved_states).items():
        if number not in parameters:
            expected = f"numbers of {len(parameters)} parameters, as in 'param_groups'"
            raise error(where, expected, repr(number))
        p, name = parameters[number]
        device = p.device if move_to_device else None
        state = _read_state(f"{where}[{number!r}]{name}", saved, p, states, device, new_for(p))
        if state:
            loaded[p] = state
    return loaded


def _by_number(saved_states: dict[Any, Any]) -> dict[Any, Any]:
    """Return the states with keys that are numbers.

    ``torch.distributed.checkpoint`` reads tensors into those that are there and puts all else under
    a text: with a state for the key 0 it leaves another one, its steps, for the key ``"0"``.
    """
    numbered = {key: saved for key, saved in saved_states.items() if not isinstance(key, str)}
    for key, saved in saved_states.items():
        if isinstance(key, str):
            number = int(key) if key.isdecimal() else key
            known: Any = numbered.get(number)
            both = isinstance(known, dict) and isinstance(saved, dict)
            numbered[number] = {**known, **saved} if both else saved
    return numbered


def _numbered(groups: Groups, saved_groups: Groups) -> Iterator[tuple[Any, tuple[Tensor, str]]]:
    for group, saved in zip(groups, saved_groups, strict=True):
        names = group.get("param_names") or saved.get("param_names")
        for i, (number, p) in enumerate(zip(saved["params"], group["params"], strict=True)):
            yield number, (p, f" ({names[i]})" if names else "")


#: What a state may have beside what its rule keeps.
_EXTRAS: dict[str, TensorSpec] = {
    "unorm_vec": (torch.float32, (1,)),
    "gnorm_vec": (torch.float32, (100,)),
}
#: Every entry that a state may have, whatever the rule.
_KNOWN = [f"{key}{number}" for number in (1, 2) for key in ("state", "absmax", "qmap")]


def _read_state(
    where: str,
    saved: Any,
    p: Tensor,
    states: Sequence[OptimizerState],
    device: torch.device | None,
    new: New,
) -> dict[str, Any]:
    """Return a checked copy of one state; entries that are not ours are copied as they are."""
    entries = _unwrapped(where, saved)
    if not entries:
        return {}
    step = _read_count(f"{where}['step']", entries.pop("step", None))
    specs = tensor_specs(local(p).shape, bits_of(entries, local(p).shape), states)
    extras = {**_EXTRAS, "compensation": (torch.bfloat16, tuple(local(p).shape))}
    specs |= {key: spec for key, spec in extras.items() if key in entries}
    if "seed" in entries:
        entries["seed"] = _read_count(f"{where}['seed']", entries["seed"])
    saved_maps: dict[str, Any] = {key: entries.get(key) for key in specs if key.startswith("qmap")}
    tensors = {
        key: _read_tensor(f"{where}[{key!r}]", entries.pop(key, None), spec, device, new)
        for key, spec in specs.items()
    }
    for key in _KNOWN:
        if key in entries:
            expected = f"nothing, because the optimizer keeps {len(states)} of the states"
            if f"state{key[-1]}" in specs:
                expected = "nothing, because state1 is float32"
            raise error(f"{where}[{key!r}]", expected, "an entry")
    for key, qmap in saved_maps.items():  # where they were saved: on another device reading waits
        if not (qmap.is_meta or (qmap[1:] >= qmap[:-1]).all()):
            raise error(f"{where}[{key!r}]", f"{len(qmap)} values in ascending order", "others")
    return {"step": step, **tensors, **copy.deepcopy(entries)}


def _unwrapped(where: str, saved: Any) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise error(where, "a dict", type(saved).__name__)
    entries = dict(saved)
    tensors = entries.pop(WRAPPER, {})
    if not isinstance(tensors, dict):
        raise error(f"{where}[{WRAPPER!r}]", "a dict", type(tensors).__name__)
    return {**entries, **tensors}


def _read_count(where: str, saved: Any) -> int:
    value = saved.item() if isinstance(saved, Tensor) and saved.numel() == 1 else saved
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0
    if not whole or not 0 <= value < 2**63:
        raise error(where, "a whole number of at least 0, below 2**63", repr(saved))
    return int(value)


def _read_tensor(
    where: str, saved: Any, spec: TensorSpec, device: torch.device | None, new: New
) -> Tensor:
    dtype, shape = spec
    expected = f"a tensor of {dtype} and shape {shape}"
    if not isinstance(saved, Tensor):
        # torch looks for the names in optimizer.state, and the saved ones stand in WRAPPER.
        hint = "Leave out flatten_optimizer_state_dict." if saved == {} else ""
        raise error(where, expected, "nothing" if saved is None else type(saved).__name__, hint)
    if saved.dtype != dtype or tuple(saved.shape) != shape:
        raise error(where, expected, f"{saved.dtype} and shape {tuple(saved.shape)}")
    return new(shape, dtype=dtype, device=device or saved.device).copy_(saved)
