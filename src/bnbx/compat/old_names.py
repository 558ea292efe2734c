"""Names that only programs written for bitsandbytes use, and where in bnbx they look for them.

They join bnbx's own modules when the alias is registered, because the modules of ``bitsandbytes``
are these.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import TYPE_CHECKING

import torch

from bnbx.compat.native_library import lib
from bnbx.compat.old_optimizers import Optimizer1State, Optimizer2State
from bnbx.nn.module8bit import ROW_FORMAT
from bnbx.optim.optimizer import KbitOptimizer
from bnbx.utils import pack_dict_to_tensor, unpack_tensor_to_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

#: Layouts of int8 weights in checkpoints. bnbx reads ``row``; the others were those of old GPUs.
LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING = {
    "row": ROW_FORMAT,
    "col32": 1,
    "col_turing": 2,
    "col_ampere": 3,
}
INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING = {
    number: name for name, number in LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING.items()
}


def replace_linear(
    model: torch.nn.Module,
    linear_replacement: Callable[[int, int, bool], torch.nn.Module],
    skip_modules: Sequence[str] = ("lm_head",),
    copy_weights: bool = False,
    post_processing_function: str | None = None,
) -> torch.nn.Module:
    """Put other layers in the place of a model's linear layers; ``bnbx.quantize_`` does more.

    Parameters
    ----------
    model
        Changed in place, with all modules below it.
    linear_replacement
        What makes a layer: called with in_features, out_features and whether there is a bias.
    skip_modules
        Names of layers, without what they are in, that stay.
    copy_weights
        Whether the new layers get the weights and biases, not only the shapes.
    post_processing_function
        Name of a method of the replaced layers; it is called, if they have it, with the layer.

    Returns
    -------
    torch.nn.Module
        The model.
    """
    for name, module in list(model.named_children()):
        replace_linear(
            module, linear_replacement, skip_modules, copy_weights, post_processing_function
        )
        if not isinstance(module, torch.nn.Linear) or name in skip_modules:
            continue
        new = linear_replacement(module.in_features, module.out_features, module.bias is not None)
        if copy_weights:
            copied = {key: value.detach() for key, value in module.named_parameters()}
            new.load_state_dict(copied, strict=True)
        setattr(model, name, new)
        process = getattr(module, post_processing_function or "", None)
        if process is not None:
            process(module)
    return model


def sync_gpu(t: Tensor) -> None:
    """Wait until everything that has been started on the tensor's device is done.

    Parameters
    ----------
    t
        On any device; a CPU has nothing to wait for.
    """
    if t.device.type != "cpu":
        torch.accelerator.synchronize(t.device)


def get_ptr(A: Tensor | None) -> ctypes.c_void_p | None:
    """Return the address of a tensor's data as ctypes takes it, None for None.

    Parameters
    ----------
    A
        On any device that holds data.
    """
    return None if A is None else ctypes.c_void_p(A.data_ptr())


#: Module of bnbx -> the names that join it.
OLD_NAMES: dict[str, dict[str, object]] = {
    "functional": {
        "get_ptr": get_ptr,
        "lib": lib,
        "pack_dict_to_tensor": pack_dict_to_tensor,
        "unpack_tensor_to_dict": unpack_tensor_to_dict,
    },
    "nn.modules": {
        "INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING": INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING,
    },
    "optim.optimizer": {
        "Optimizer1State": Optimizer1State,
        "Optimizer2State": Optimizer2State,
        "Optimizer8bit": KbitOptimizer,
    },
    "utils": {
        "INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING": INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING,
        "LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING": LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING,
        "replace_linear": replace_linear,
        "sync_gpu": sync_gpu,
    },
}


def add_old_names() -> None:
    """Let programs find the names where they look for them."""
    for name, values in OLD_NAMES.items():
        vars(importlib.import_module(f"bnbx.{name}")).update(values)
