"""Helpers around the models: packing of small dictionaries into tensors, and outlier features."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bnbx.ops import error

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

#: A packed dictionary holds a few numbers and names; a file that claims more is not one of ours.
MAX_PACKED_BYTES = 1 << 16


def pack_dict_to_tensor(source_dict: dict[str, Any]) -> Tensor:
    """Return the dictionary as JSON in a uint8 tensor, so that safetensors can hold it.

    Parameters
    ----------
    source_dict
        Anything that ``json.dumps`` accepts.

    Returns
    -------
    torch.Tensor
        uint8 of shape ``(bytes,)`` on the CPU.
    """
    return torch.frombuffer(bytearray(json.dumps(source_dict).encode()), dtype=torch.uint8)


def unpack_tensor_to_dict(tensor_data: Tensor, name: str = "tensor_data") -> dict[str, Any]:
    """Return the dictionary that ``pack_dict_to_tensor`` packed.

    Parameters
    ----------
    tensor_data
        uint8 of shape ``(bytes,)``, at most 65536 bytes, on any device that holds data.
    name
        What an error calls the tensor.

    Returns
    -------
    dict
        What the JSON says; nothing in it is checked.

    Raises
    ------
    ValueError
        If the tensor is not such a tensor or does not hold a JSON object.
    """
    if not isinstance(tensor_data, Tensor) or tensor_data.dtype != torch.uint8:
        got = getattr(tensor_data, "dtype", type(tensor_data).__name__)
        raise error(name, "a uint8 tensor of JSON", got)
    if tensor_data.is_meta:
        raise error(name, "a tensor that holds data", "one on the meta device")
    if tensor_data.dim() != 1 or tensor_data.numel() > MAX_PACKED_BYTES:
        shape = tuple(tensor_data.shape)
        raise error(name, f"1 dimension of at most {MAX_PACKED_BYTES} bytes", shape)
    try:
        unpacked = json.loads(bytes(tensor_data.tolist()))
    except (ValueError, RecursionError) as failure:
        raise error(name, "a JSON object", f"bytes that are none ({failure})") from failure
    if not isinstance(unpacked, dict):
        raise error(name, "a JSON object", f"a JSON {type(unpacked).__name__}")
    return unpacked


def find_outlier_dims(
    weight: Tensor,
    reduction_dim: int = 0,
    zscore: float = 4.0,
    topk: int | None = None,
    rdm: bool = False,
) -> Tensor:
    """Return the dimensions whose standard deviation stands out from the others'.

    Parameters
    ----------
    weight
        Floating point matrix.
    reduction_dim
        The dimension over which the standard deviation is taken; indices are along the other one.
    zscore
        How many standard deviations above the mean make an outlier.
    topk
        Return this many dimensions with the largest standard deviation instead.
    rdm
        Return ``topk`` random columns instead, as a control.

    Returns
    -------
    torch.Tensor
        int64 of shape ``(outliers,)``.

    Raises
    ------
    ValueError
        If ``rdm`` is asked for without ``topk``.
    """
    if rdm:
        if topk is None:
            raise error("topk", "a number of columns, because rdm is set", None)
        return torch.randint(0, weight.shape[1], size=(topk,), device=weight.device)
    std = weight.std(reduction_dim)
    if topk is not None:
        return std.topk(topk).indices
    return ((std - std.mean()) / std.std() > zscore).nonzero().view(-1)


class OutlierTracer:
    """Finds the outlier features of every ``torch.nn.Linear`` during a model's first forward pass.

    One instance serves the process: ``OutlierTracer.get_instance().initialize(model)``, one forward
    pass, then ``get_outliers(layer.weight)``.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), section 4; the magnitude of 6 is defined there.
    """

    initialized: bool
    hooks: dict[torch.nn.Module, RemovableHandle]
    hvalue2outlier_idx: dict[int, Tensor]
    _instance: ClassVar[OutlierTracer | None] = None

    def __init__(self) -> None:
        msg = "OutlierTracer: one instance serves the process, call OutlierTracer.get_instance()"
        raise RuntimeError(msg)

    @classmethod
    def get_instance(cls) -> OutlierTracer:
        """Return the instance, not initialized yet if it is new."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialized = False
            cls._instance.hooks = {}
        return cls._instance

    def initialize(self, model: torch.nn.Module) -> None:
        """Watch the linear layers of ``model`` and forget those of any other.

        Parameters
        ----------
        model
            Its next forward pass is the one that is looked at.
        """
        for hook in self.hooks.values():
            hook.remove()
        self.hvalue2outlier_idx = {}
        self.hooks = {
            module: module.register_forward_pre_hook(self._look)
            for module in model.modules()
            if isinstance(module, torch.nn.Linear)
        }
        self.initialized = True

    def is_initialized(self) -> bool:
        """Whether ``initialize`` has been called."""
        return self.initialized

    def get_hvalue(self, weight: Tensor) -> int:
        """Return what a weight is known by: where its data lies."""
        return weight.data_ptr()

    def get_outliers(self, weight: Tensor) -> Tensor | None:
        """Return the outlier input features of the layer with this weight.

        Parameters
        ----------
        weight
            The weight of a layer of the model given to ``initialize``.

        Returns
        -------
        torch.Tensor or None
            int64 of shape ``(outliers,)``; None if the layer has not run yet.

        Raises
        ------
        RuntimeError
            If ``initialize`` has not been called.
        """
        if not self.initialized:
            msg = "OutlierTracer: expected initialize(model) to have been called before"
            raise RuntimeError(msg)
        return self.hvalue2outlier_idx.get(self.get_hvalue(weight))

    def _look(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.hooks.pop(module).remove()
        weight: Tensor = module.weight  # type: ignore[assignment]
        if self.hvalue2outlier_idx:
            outliers = find_outlier_dims(weight.detach())
        else:
            # Nothing before the first layer shows the outliers in its weight: its input does.
            features = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            is_outlier = (features.abs() > 6.0).any(dim=0)
            is_outlier[find_outlier_dims(features, zscore=3.0)] = True
            outliers = is_outlier.nonzero().view(-1)
        self.hvalue2outlier_idx[self.get_hvalue(weight)] = outliers
