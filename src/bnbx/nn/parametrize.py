"""Parameters of any module and any shape in 4 bits, decoded where the module reads them.

A module reads ``module.weight`` as before and gets floating point values; what it keeps in memory
is the packed codes. It works for every parameter. The experts of transformers, stacked in
parameters of three dimensions, are multiplied without decoding them, by ``bnbx.nn.experts``.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from bnbx.functional import QuantState, dequantize_4bit, quantize_4bit
from bnbx.nn.experts import expert_weights, multiply_experts
from bnbx.nn.params4bit import moved, stored_as
from bnbx.ops import error, packed_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from bnbx.nn.experts import PackedParameter


class Bnb4bitParametrization(torch.nn.Module):
    """Decodes a parameter that is stored as packed 4-bit codes.

    Parameters
    ----------
    quant_state
        What undoes the quantization. It moves with the module, and its dtypes stay.
    compute_dtype
        What experts are multiplied in; by default the dtype of autocast or of the input.
    """

    def __init__(self, quant_state: QuantState, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.quant_state = quant_state
        self.compute_dtype = compute_dtype

    @torch.no_grad()
    def forward(self, quantized_param: Tensor) -> Tensor:
        """Return the values of the packed codes, in the shape and dtype that they had."""
        return dequantize_4bit(quantized_param, self.quant_state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # No buffers: torch would convert the scales with .half(), and save them by names of its
        # own.
        device = fn(self.quant_state.absmax).device
        if device.type != "meta":
            self.quant_state = moved(self.quant_state, device)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


def replace_parameter_4bit(
    module: torch.nn.Module,
    param_name: str,
    compress_statistics: bool = False,
    quant_type: str = "nf4",
    blocksize: int | None = None,
    *,
    scale_search: bool = False,
) -> None:
    """Quantize a parameter of a module to 4 bits, in place.

    Reading ``module.<param_name>`` returns decoded values; a ``forward`` that reads it several
    times decodes it once. Experts of transformers, once all of their matrices are in 4 bits, are
    multiplied in groups and not decoded at all. The codes get no gradients.

    The module is saved and loaded with the codes as ``<param_name>`` and the statistics as
    ``<param_name>.absmax`` and so on, as a ``Linear4bit`` is. It loads unquantized values, too, and
    quantizes them.

    Parameters
    ----------
    module
        What has the parameter itself, not in a child.
    param_name
        Its name. Any shape; the blocks are of the flattened tensor.
    compress_statistics
        Whether the scales are quantized too (double quantization).
    quant_type
        ``"nf4"`` or ``"fp4"``.
    blocksize
        Elements that share a scale: 32, 64 (the default), 128, ..., 4096.
    scale_search
        As for ``quantize_4bit``. Values that are loaded later are quantized without it.

    Raises
    ------
    AttributeError
        If the module has nothing of that name.
    TypeError
        If it is not a parameter, or a quantized one already.
    ValueError
        If the parameter's dtype, the type or the blocksize is wrong.
    """
    parameter = _parameter(module, param_name)
    packed, state = quantize_4bit(
        parameter.data,
        blocksize=blocksize,
        compress_statistics=compress_statistics,
        quant_type=quant_type,
        scale_search=scale_search,
    )
    _replace(module, param_name, packed, state)


def replace_parameter_4bit_prequantized(
    module: torch.nn.Module,
    param_name: str,
    qs_dict: dict[str, Any],
    device: torch.device | str | int,
) -> None:
    """Make a parameter that holds packed codes one that decodes them where it is read.

    Parameters
    ----------
    module, param_name
        As for ``replace_parameter_4bit``; the parameter holds the codes of a checkpoint.
    qs_dict
        The entries next to it, as ``QuantState.from_dict`` reads them.
    device
        Where the statistics are put.

    Raises
    ------
    AttributeError, TypeError
        As ``replace_parameter_4bit`` does.
    ValueError
        If an entry is missing or wrong, or if codes and statistics do not belong together.
    """
    codes = _parameter(module, param_name).data
    state = QuantState.from_dict(qs_dict, device=torch.device(device))
    _check_codes(param_name, codes, state)
    _replace(module, param_name, codes, state)


def packed_parameter(module: torch.nn.Module, name: str) -> PackedParameter | None:
    """Return codes, state and ``compute_dtype`` of a parameter that is quantized and nothing more.

    None if it is not, or if something else has been put on top of the decoded values, such as an
    adapter.

    Parameters
    ----------
    module, name
        The module that has the parameter, and the parameter's name in it.
    """
    if not parametrize.is_parametrized(module, name):
        return None
    stack: Any = module.parametrizations[name]  # type: ignore[index]
    if len(stack) != 1 or not isinstance(stack[0], Bnb4bitParametrization):
        return None
    return stack.original, stack[0].quant_state, stack[0].compute_dtype


def quantized_parameters(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of a module's own parameters that are in 4 bits.

    Parameters
    ----------
    module
        Its submodules are not looked at.
    """
    stacks: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    return tuple(name for name in stacks if _parametrization(module, name) is not None)


def restore_parameter(module: torch.nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """Undo ``replace_parameter_4bit``: put the decoded values in the place of the codes.

    Parameters
    ----------
    module, name
        What has the parameter itself, and the parameter's name.
    dtype
        Of the values; by default the one that they had.

    Raises
    ------
    ValueError
        If the parameter is not quantized, or if something lies on top of the decoded values.
    """
    if packed_parameter(module, name) is None:
        expected = "the name of a parameter in 4 bits, with nothing on top of it"
        raise error("name", expected, repr(name))
    values = getattr(module, name).to(dtype)
    # torch removes the property from the class, which a deep copy shares with its original.
    cls = type(module)
    module.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    setattr(module, name, torch.nn.Parameter(values))


def _parameter(module: torch.nn.Module, name: str) -> torch.nn.Parameter:
    if not hasattr(module, name):
        raise AttributeError(f"param_name: {type(module).__name__} has no parameter {name!r}")
    parameter = getattr(module, name)
    if not isinstance(parameter, torch.nn.Parameter):
        got = f"a {type(parameter).__name__}, or it is quantized already"
        raise TypeError(f"param_name: expected the name of a parameter, {name!r} is {got}")
    return parameter


def _check_codes(name: str, codes: Tensor, state: QuantState) -> None:
    got, expected = codes.numel() * codes.element_size(), packed_bytes(state.shape.numel())
    if not 0 <= got - expected < codes.element_size():
        what = f"{expected} bytes of packed codes for shape {tuple(state.shape)}"
        raise error(name, what, f"{got} bytes of {codes.dtype}")


def _replace(module: torch.nn.Module, name: str, packed: Tensor, state: QuantState) -> None:
    setattr(module, name, torch.nn.Parameter(packed, requires_grad=False))
    # unsafe: the values have another shape and dtype than what is stored.
    parametrization = Bnb4bitParametrization(state)
    parametrize.register_parametrization(module, name, parametrization, unsafe=True)
    _register_hooks(module, name)
    _decode_once_a_call(type(module))


def _decode_once_a_call(cls: type[torch.nn.Module]) -> None:
    """Let the forward of a class, which torch has made for one module, decode parameters once.

    Experts decode nothing, unless something lies on top of what would be decoded.
    """
    if "forward" in vars(cls):
        return
    base: Any = cls.__bases__[0]

    @functools.wraps(base.forward)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        weights = [packed_parameter(self, name) for name in expert_weights(self)]
        packed = [weight for weight in weights if weight is not None]
        if packed and len(packed) == len(weights):
            return multiply_experts(self, packed, *args, **kwargs)
        with parametrize.cached():
            return base.forward(self, *args, **kwargs)

    cls.forward = forward


# Saving and loading ------------------------------------------------------------------------------


def _register_hooks(module: torch.nn.Module, name: str) -> None:
    """Register what saves and loads a parameter, unless an earlier quantization has done so."""
    hooks: list[Any] = [*module._state_dict_hooks.values()]
    savers = [hook for hook in hooks if isinstance(hook, functools.partial) and hook.func is _save]
    if any(hook.keywords["name"] == name for hook in savers):
        return
    module.register_state_dict_post_hook(functools.partial(_save, name=name))
    module.register_load_state_dict_pre_hook(functools.partial(_load, name=name))


def _original(prefix: str, name: str) -> str:
    """Return what torch calls the stored tensor of a parametrized parameter."""
    return f"{prefix}parametrizations.{name}.original"


def _save(
    module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, _: Any, *, name: str
) -> None:
    parametrization = _parametrization(module, name)
    if parametrization is None or _original(prefix, name) not in state_dict:
        return
    codes = state_dict.pop(_original(prefix, name))
    state_dict[prefix + name] = codes
    for entry, value in parametrization.quant_state.as_dict(packed=True).items():
        state_dict[f"{prefix}{name}.{entry}"] = value


def _load(
    module: torch.nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    _: list[str],
    error_msgs: list[str],
    *,
    name: str,
) -> None:
    """Take the parameter's entries out of a checkpoint, and put the codes where torch looks."""
    parametrization = _parametrization(module, name)
    if parametrization is None:
        return
    key = prefix + name
    statistics = [entry for entry in state_dict if entry.startswith(f"{key}.")]
    entries = {entry: state_dict.pop(entry) for entry in statistics}
    data = state_dict.pop(key, None)
    original = getattr(module.parametrizations, name).original
    # What is not replaced loads itself, so that torch does not ask for a name that is not saved.
    state_dict[_original(prefix, name)] = original
    if data is None:
        if strict:
            missing_keys.append(key)
        return
    copy = not local_metadata.get("assign_to_params_buffers", False)
    try:
        codes, state = _read(name, data, entries, parametrization.quant_state, original, copy)
    except ValueError as failure:
        error_msgs.append(f'While loading "{key}": {failure}')
        return
    state_dict[_original(prefix, name)] = codes
    parametrization.quant_state = state


def _read(
    name: str,
    data: Tensor,
    entries: dict[str, Tensor],
    current: QuantState,
    original: Tensor,
    copy: bool,
) -> tuple[Tensor, QuantState]:
    """Return codes and state of a checkpoint's entries; a copy goes where the present ones are."""
    device = original.device if copy else data.device
    if not entries:
        if not data.is_floating_point() or data.shape != current.shape:
            expected = f"floating point of shape {tuple(current.shape)}, or codes with statistics"
            raise error(name, expected, f"{data.dtype} of shape {tuple(data.shape)} alone")
        return quantize_4bit(
            data.to(device, current.dtype),
            blocksize=current.blocksize,
            compress_statistics=current.nested,
            quant_type=current.quant_type,
        )
    if copy:
        entries = {entry: value.clone() for entry, value in entries.items()}
    state = QuantState.from_dict(entries, device=device)
    if state.shape != current.shape:
        raise error(f"{name}.quant_state", f"shape {tuple(current.shape)}", tuple(state.shape))
    _check_codes(name, data, state)
    codes = stored_as(data, original.dtype, state.shape.numel()) if copy else data
    return codes.view(original.shape) if copy else codes, state


def _parametrization(module: torch.nn.Module, name: str) -> Bnb4bitParametrization | None:
    """Return what decodes a parameter; None after ``remove_parametrizations``."""
    if not parametrize.is_parametrized(module, name):
        return None
    stack: Any = module.parametrizations[name]  # type: ignore[index]
    found = (entry for entry in stack if isinstance(entry, Bnb4bitParametrization))
    return next(found, None)
