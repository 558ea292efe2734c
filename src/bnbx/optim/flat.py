"""Optimizer states as a flat dict of tensors and a text, which is what safetensors stores."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnbx.ops import error
from bnbx.optim.state import WRAPPER, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Entry of the metadata with everything that is no tensor, as JSON.
METADATA_KEY = "bnbx.optim"


def flatten_state_dict(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return an optimizer's state as ``safetensors.torch.save_file`` takes it.

    Parameters
    ----------
    state_dict
        What ``optimizer.state_dict()`` returned.

    Returns
    -------
    tensors, metadata
        The tensors by name, each once: parameters share their quantization maps. In the metadata
        stand the parameter groups, the steps and which tensor belongs where.

    Raises
    ------
    ValueError
        If there is something else than tensors, numbers, texts, lists and dicts in it.

    Examples
    --------
    >>> tensors, metadata = flatten_state_dict(optimizer.state_dict())
    >>> safetensors.torch.save_file(tensors, "optimizer.safetensors", metadata)
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[int, int], str] = {}

    def plain(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            memory = (value.data_ptr(), value.numel())
            name = names.setdefault(memory, where) if value.numel() else where
            tensors.setdefault(name, value.contiguous())
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, plain(v, f"{where}.{key}")] for key, v in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [plain(v, f"{where}.{i}") for i, v in enumerate(value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        expected = "a tensor, number, text, list or dict"
        raise error(f"state_dict entry {where}", expected, type(value).__name__)

    states = {
        number: {**{k: v for k, v in entry.items() if k != WRAPPER}, **entry.get(WRAPPER, {})}
        for number, entry in state_dict["state"].items()
    }
    groups = plain(state_dict["param_groups"], "param_groups")
    text = json.dumps({"state": plain(states, "state"), "param_groups": groups})
    return tensors, {METADATA_KEY: text}


def unflatten_state_dict(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Return what ``flatten_state_dict`` was given, for ``optimizer.load_state_dict``.

    Tuples have become lists.

    Parameters
    ----------
    tensors
        What ``safetensors.torch.load_file`` returned.
    metadata
        What ``safetensors.safe_open(...).metadata()`` returned.

    Raises
    ------
    ValueError
        If the metadata is missing or malformed, or names a tensor that is not there.
    """
    try:
        content = json.loads(metadata[METADATA_KEY])
        states, groups = content["state"], content["param_groups"]
    except (KeyError, TypeError, ValueError) as failure:
        expected = f"an entry {METADATA_KEY!r}, written by flatten_state_dict"
        raise error("metadata", expected, f"{type(failure).__name__}: {failure}") from None

    def restored(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind, content = next(iter(value.items()), (None, None))
        if kind == "tensor" and isinstance(content, str) and content in tensors:
            return tensors[content]
        if kind == "list" and isinstance(content, list):
            return [restored(v) for v in content]
        if kind == "dict" and isinstance(content, list):
            return {key: restored(v) for key, v in content}
        raise error("metadata", "names of the tensors given", repr(value))

    state = {number: wrapped(entry) for number, entry in restored(states).items()}
    return {"state": state, "param_groups": restored(groups)}
