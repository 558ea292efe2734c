"""The linear layers and the experts of any model to k bits and back, in place."""

from __future__ import annotations

import functools
import importlib
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from bnbx.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from bnbx.nn.parametrize import quantized_parameters, restore_parameter
from bnbx.ops import BLOCKSIZES_4BIT, check_4bit_type, error
from bnbx.quantize.experts import ExpertSettings
from bnbx.quantize.plan import names_of_modules, plan
from bnbx.quantize.report import LayerReport, QuantizationReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.nn import Module

    from bnbx.nn.parameter import QuantizedParameter
    from bnbx.quantize.plan import Layer, Skip

KINDS = ("nf4", "fp4", "int8")
#: Elements of a weight whose error is computed at a time, so that it takes little memory. A
#: multiple of every blocksize times 256, the blocksize of nested scales.
CHUNK = max(BLOCKSIZES_4BIT) * 256


def quantize_(
    model: Module,
    kind: str = "nf4",
    *,
    skip: Skip = (),
    double_quant: bool = True,
    compute_dtype: torch.dtype | None = None,
    blocksize: int = 64,
    threshold: float = 6.0,
    quant_storage: torch.dtype = torch.uint8,
    untie: bool = False,
    progress: bool = True,
) -> QuantizationReport:
    """Quantize the linear layers of a model in place, one after the other, on their devices.

    To 4 bits the experts of transformers' mixtures are quantized as well, which are stacked in
    parameters of three dimensions, if each expert's matrix is made of whole blocks.

    A layer's weight is freed before the next one is quantized, unless something else holds it.
    Hooks, training mode, biases and attributes of the layers stay. What is left as it is: layers
    with a ``forward`` of their own, parametrized ones, those whose weight is read directly, as in
    ``MultiheadAttention``, and those whose weight is tied to something that is not quantized.
    Layers that are tied to each other are tied afterwards.

    Parameters
    ----------
    model
        Any module that contains ``torch.nn.Linear`` layers.
    kind
        ``"nf4"``, ``"fp4"`` or ``"int8"``.
    skip
        What to leave: names of layers or of modules that contain them, ends of names after a dot,
        patterns as in ``fnmatch``; or a function of name and module.
    double_quant, compute_dtype, blocksize, quant_storage
        4-bit only: as ``compress_statistics``, ``compute_dtype``, ``blocksize`` and
        ``quant_storage`` of ``Linear4bit``. Experts are left if ``quant_storage`` is not uint8.
    threshold
        int8 only: as for ``Linear8bitLt``.
    untie
        Whether to quantize weights tied to something that is not, which unties them. The other one
        stays in memory.
    progress
        Whether to show a progress bar, if tqdm is installed.

    Returns
    -------
    QuantizationReport
        Sizes and errors, layer by layer, and what was left and why.

    Raises
    ------
    ValueError
        If an argument is wrong, or set though ``kind`` has no use for it, or if ``model`` is a
        linear layer itself, which cannot be replaced from within.
    """
    if isinstance(model, torch.nn.Linear):
        hint = "Make a Linear4bit or Linear8bitLt of it."
        raise error("model", "a module that contains linear layers", type(model).__name__, hint)
    make = _maker(kind, double_quant, compute_dtype, blocksize, threshold, quant_storage)
    experts = ExpertSettings(kind, double_quant, compute_dtype, blocksize, quant_storage)
    chosen, skipped, unused = plan(model, skip, experts, untie=untie)
    layers: list[LayerReport] = []
    done: dict[Any, QuantizedParameter] = {}
    for layer in _with_progress(chosen, f"quantizing to {kind}", progress):
        if not layer.is_linear:
            layers += _quantize_experts(model, layer, experts)
            continue
        old = cast("torch.nn.Linear", model.get_submodule(layer.names[0]))
        twin = done.get(layer.tie)
        new = make(old) if twin is None else make(old, twin)
        done[layer.tie] = weight = cast("QuantizedParameter", new.weight)
        layers.append(_report(layer.names[0], kind, old.weight, weight, tied=twin is not None))
        _replace(model, layer.names, old, new)
        del old  # Its weight is freed now, before the next layer's is quantized.
    return QuantizationReport(tuple(layers), skipped, unused)


def dequantize_(model: Module, dtype: torch.dtype | None = None) -> Module:
    """Replace the quantized linear layers of a model by ``torch.nn.Linear``, in place.

    Experts and other parameters that ``nn.parametrize`` has put into 4 bits are replaced by
    parameters in floating point.

    Layers that are tied to each other are tied afterwards. Hooks, training mode, biases and
    attributes of the layers stay; the weights require gradients, as those of new layers do.

    Parameters
    ----------
    model
        Any module that contains ``Linear4bit`` or ``Linear8bitLt`` layers.
    dtype
        Of the weights; by default the one that they had before they were quantized, or float32 if
        that is not known, as after loading an int8 checkpoint.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    ValueError
        If ``model`` is a quantized layer itself, which cannot be replaced from within.
    """
    if isinstance(model, Linear4bit | Linear8bitLt):
        raise error("model", "a module that contains quantized layers", type(model).__name__)
    done: dict[int, torch.nn.Parameter] = {}
    for names in names_of_modules(model, (Linear4bit, Linear8bitLt)):
        old = cast("Linear4bit | Linear8bitLt", model.get_submodule(names[0]))
        new = torch.nn.Linear(old.in_features, old.out_features, bias=False, device="meta")
        weight = cast("QuantizedParameter", old.weight)
        if id(weight) not in done:
            done[id(weight)] = torch.nn.Parameter(_dequantized(weight, dtype))
        new.weight = done[id(weight)]
        _replace(model, names, old, new)
    for module in model.modules():
        for name in quantized_parameters(module):
            restore_parameter(module, name, dtype)
    return model


def _quantize_experts(
    model: Module, layer: Layer, experts: ExpertSettings
) -> Iterable[LayerReport]:
    """Quantize the stacks of matrices of experts in place, one after the other."""
    module = model.get_submodule(layer.names[0])
    for name in layer.weights:
        old = cast("Tensor", getattr(module, name))
        new = experts.quantize(module, name)
        yield _report(f"{layer.names[0]}.{name}", experts.kind, old, new, tied=False)


def _maker(
    kind: str,
    double_quant: bool,
    compute_dtype: torch.dtype | None,
    blocksize: int,
    threshold: float,
    quant_storage: torch.dtype,
) -> Callable[..., Linear4bit | Linear8bitLt]:
    """Return the function that makes a quantized layer of a linear one, or with a given weight."""
    if kind not in KINDS:
        raise error("kind", f"one of {KINDS}", repr(kind))
    settings_4bit = {
        "double_quant": (double_quant, True),
        "compute_dtype": (compute_dtype, None),
        "blocksize": (blocksize, 64),
        "quant_storage": (quant_storage, torch.uint8),
    }
    useless = settings_4bit if kind == "int8" else {"threshold": (threshold, 6.0)}
    for name, (value, default) in useless.items():
        if value != default:
            raise error(name, f"the default, because {kind!r} has no use for it", value)
    if not threshold >= 0.0:
        raise error("threshold", "a number of at least 0", threshold)
    if kind == "int8":
        return functools.partial(_make_8bit, has_fp16_weights=False, threshold=threshold)
    check_4bit_type(blocksize, kind)
    return functools.partial(
        _make_4bit,
        compute_dtype=compute_dtype,
        compress_statistics=double_quant,
        quant_type=kind,
        quant_storage=quant_storage,
        blocksize=blocksize,
    )


def _make_4bit(
    old: torch.nn.Linear, weight: QuantizedParameter | None = None, **settings: Any
) -> Linear4bit:
    new = Linear4bit(old.in_features, old.out_features, bias=False, device="meta", **settings)
    new.weight = _quantized(old, new) if weight is None else weight
    return new


def _make_8bit(
    old: torch.nn.Linear, weight: QuantizedParameter | None = None, **settings: Any
) -> Linear8bitLt:
    new = Linear8bitLt(old.in_features, old.out_features, bias=False, device="meta", **settings)
    new.weight = _quantized(old, new) if weight is None else weight
    return new


def _quantized(old: torch.nn.Linear, new: torch.nn.Linear) -> QuantizedParameter:
    """Quantize a layer's weight as the weight of another is to be."""
    return cast("QuantizedParameter", new.weight).like(old.weight.data).to(old.weight.device)


@functools.cache
def _own_attributes() -> frozenset[str]:
    """Return the names of what the quantized layers have and ``torch.nn.Linear`` has not."""
    quantized = vars(Linear4bit(1, 1, device="meta")), vars(Linear8bitLt(1, 1, device="meta"))
    return frozenset().union(*quantized) - vars(torch.nn.Linear(1, 1, device="meta")).keys()


def _replace(
    model: Module, names: Sequence[str], old: torch.nn.Linear, new: torch.nn.Linear
) -> None:
    """Put ``new`` in the place of ``old`` under all its names, with all that is attached to it."""
    for name, value in vars(old).items():
        if name != "_parameters" and name not in _own_attributes():
            vars(new)[name] = value
    new.register_parameter("bias", old.bias)
    new.train(old.training)
    for name in names:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)


# Weights -----------------------------------------------------------------------------------------


def _report(
    name: str, kind: str, old: Tensor, new: QuantizedParameter, *, tied: bool
) -> LayerReport:
    after = new.nbytes + sum(tensor.nbytes for tensor in new.statistics())
    sizes = (0, 0) if tied else (old.nbytes, after)
    return LayerReport(name, kind, tuple(old.shape), *sizes, _relative_error(old, new))


def _relative_error(old: Tensor, new: QuantizedParameter) -> float:
    # Pieces of whole rows, or of packed codes, begin and end with a block.
    rows = (
        CHUNK // 2 // new.element_size() if isinstance(new, Params4bit) else CHUNK // old.shape[1]
    )
    values = old.detach().reshape(-1)
    change = norm = 0.0
    for piece in torch.split(new, max(1, rows)):
        decoded = piece.dequantize().view(-1)
        exact, values = values[: decoded.numel()].float(), values[decoded.numel() :]
        norm += exact.square().sum(dtype=torch.float64).item()
        change += (exact - decoded).square().sum(dtype=torch.float64).item()
    return math.sqrt(change / norm) if norm else math.sqrt(change)


def _dequantized(weight: QuantizedParameter, dtype: torch.dtype | None) -> Tensor:
    if dtype is None and isinstance(weight, Int8Params):
        dtype = weight.quantized_from
    return weight.dequantize().to(dtype)


def _with_progress(layers: Sequence[Layer], title: str, progress: bool) -> Iterable[Layer]:
    if not progress:
        return layers
    try:
        tqdm = importlib.import_module("tqdm.auto")
    except ImportError:
        return layers
    bar: Iterable[Layer] = tqdm.tqdm(layers, desc=title, unit="layer")
    return bar
