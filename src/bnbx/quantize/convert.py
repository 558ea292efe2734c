"""The linear layers and the experts of any model to k bits and back, in place."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import itertools
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from bnbx.functional import quantize_4bit
from bnbx.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from bnbx.nn.parametrize import quantized_parameters, restore_parameter
from bnbx.ops import BLOCKSIZES_4BIT, check_4bit_type, error
from bnbx.quantize.calibration import calibrated
from bnbx.quantize.experts import ExpertSettings
from bnbx.quantize.gptq import quantize_with_moments
from bnbx.quantize.plan import names_of_modules, plan
from bnbx.quantize.random_tokens import RANDOM, random_tokens
from bnbx.quantize.report import LayerReport, QuantizationReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

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
    scale_search: bool = False,
    calibration: Iterable[Any] | str | None = None,
    calibration_method: str | None = None,
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
    scale_search
        4-bit only: as for ``quantize_4bit``. With ``calibration`` it always happens. Values that
        are loaded into the layers later are quantized without it.
    calibration
        4-bit only: batches for the model, each a tensor, a tuple of arguments or a dict of
        keywords, from which the layers learn what their inputs look like. A few thousand tokens of
        text like that which the model will see. A stack of blocks, as of a transformer, is
        quantized block by block, with inputs from blocks that are quantized already. Experts come
        last; of them only the scales are searched. ``"random"``, for a language model without a
        text: 1,024 token ids drawn at random, always the same.
    calibration_method
        ``"gptq"``: rounding errors are made good by the weights that are rounded later (Frantar et
        al. 2022). ``"imatrix"``: scales are searched with errors weighted by the second moments of
        the inputs; faster, with less memory. By default ``"gptq"`` with batches, ``"imatrix"`` with
        random ids, which tell less.
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
        linear layer itself, which cannot be replaced from within. If no batch reaches a layer, or
        its inputs are not finite: layers before it are quantized then.
    """
    if isinstance(model, torch.nn.Linear):
        hint = "Make a Linear4bit or Linear8bitLt of it."
        raise error("model", "a module that contains linear layers", type(model).__name__, hint)
    make = _maker(
        kind, double_quant, compute_dtype, blocksize, threshold, quant_storage, scale_search
    )
    if calibration is not None and kind == "int8":
        raise error("calibration", "None, because 'int8' has no use for it", "batches")
    if calibration is None and calibration_method is not None:
        expected = "the default, because there is no calibration"
        raise error("calibration_method", expected, repr(calibration_method))
    search = scale_search or calibration is not None
    experts = ExpertSettings(kind, double_quant, compute_dtype, blocksize, quant_storage, search)
    chosen, skipped, unused = plan(model, skip, experts, untie=untie)
    groups: Iterable[tuple[list[Layer], dict[str, Tensor]]] = [(chosen, {})]
    if calibration is not None:
        linear = [layer for layer in chosen if layer.is_linear]
        others = [layer for layer in chosen if not layer.is_linear]
        batches, method = _batches(model, calibration, calibration_method)
        calibrated_groups = calibrated(model, linear, batches, method)
        groups = itertools.chain(calibrated_groups, [(others, {})])
    layers: list[LayerReport] = []
    done: dict[Any, QuantizedParameter] = {}
    with _progress_bar(len(chosen), f"quantizing to {kind}", progress) as advance:
        for layer, moments in ((each, moments) for group, moments in groups for each in group):
            if layer.is_linear:
                moment = moments.pop(layer.names[0], None)
                layers.append(_quantize_layer(model, layer, kind, make, done, moment))
            else:
                layers += _quantize_experts(model, layer, experts)
            advance()
    return QuantizationReport(tuple(layers), skipped, unused)


def _batches(
    model: Module, calibration: Iterable[Any] | str, method: str | None
) -> tuple[Iterable[Any], str]:
    """Return what a calibration reads, and what is made of it."""
    if not isinstance(calibration, str):
        return calibration, method or "gptq"
    if calibration != RANDOM:
        raise error("calibration", f"batches or {RANDOM!r}", repr(calibration))
    return random_tokens(model), method or "imatrix"


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
        Of the weights; by default the one that they had before they were quantized. If that is not
        known, as after loading an int8 checkpoint, the one that most of the model's other
        parameters have.

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
    others = _usual_dtype(model)
    done: dict[int, torch.nn.Parameter] = {}
    for names in names_of_modules(model, (Linear4bit, Linear8bitLt)):
        old = cast("Linear4bit | Linear8bitLt", model.get_submodule(names[0]))
        new = torch.nn.Linear(old.in_features, old.out_features, bias=False, device="meta")
        weight = cast("QuantizedParameter", old.weight)
        if id(weight) not in done:
            done[id(weight)] = torch.nn.Parameter(_dequantized(weight, dtype, others))
        new.weight = done[id(weight)]
        _replace(model, names, old, new)
    for module in model.modules():
        for name in quantized_parameters(module):
            restore_parameter(module, name, dtype)
    return model


def _quantize_layer(
    model: Module,
    layer: Layer,
    kind: str,
    make: Callable[..., Linear4bit | Linear8bitLt],
    done: dict[Any, QuantizedParameter],
    moments: Tensor | None,
) -> LayerReport:
    """Replace a linear layer; on return nothing here holds its old weight."""
    old = cast("torch.nn.Linear", model.get_submodule(layer.names[0]))
    twin = done.get(layer.tie)
    new = make(old, twin, moments)
    done[layer.tie] = weight = cast("QuantizedParameter", new.weight)
    _replace(model, layer.names, old, new)
    return _report(layer.names[0], kind, old.weight, weight, tied=twin is not None)


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
    scale_search: bool,
) -> Callable[..., Linear4bit | Linear8bitLt]:
    """Return the function that makes a quantized layer of a linear one, or with a given weight."""
    if kind not in KINDS:
        raise error("kind", f"one of {KINDS}", repr(kind))
    settings_4bit = {
        "double_quant": (double_quant, True),
        "compute_dtype": (compute_dtype, None),
        "blocksize": (blocksize, 64),
        "quant_storage": (quant_storage, torch.uint8),
        "scale_search": (scale_search, False),
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
        scale_search=scale_search,
        compute_dtype=compute_dtype,
        compress_statistics=double_quant,
        quant_type=kind,
        quant_storage=quant_storage,
        blocksize=blocksize,
    )


def _make_4bit(
    old: torch.nn.Linear,
    weight: QuantizedParameter | None = None,
    moments: Tensor | None = None,
    *,
    scale_search: bool,
    **settings: Any,
) -> Linear4bit:
    new = Linear4bit(old.in_features, old.out_features, bias=False, device="meta", **settings)
    if weight is None and (scale_search or moments is not None):
        weight = _searched(old.weight.data, cast("Params4bit", new.weight), moments)
    new.weight = _quantized(old, new) if weight is None else weight
    return new


def _make_8bit(
    old: torch.nn.Linear,
    weight: QuantizedParameter | None = None,
    _: Tensor | None = None,
    **settings: Any,
) -> Linear8bitLt:
    new = Linear8bitLt(old.in_features, old.out_features, bias=False, device="meta", **settings)
    new.weight = _quantized(old, new) if weight is None else weight
    return new


def _quantized(old: torch.nn.Linear, new: torch.nn.Linear) -> QuantizedParameter:
    """Quantize a layer's weight as the weight of another is to be."""
    return cast("QuantizedParameter", new.weight).like(old.weight.data).to(old.weight.device)


def _searched(weight: Tensor, like: Params4bit, moments: Tensor | None) -> Params4bit:
    """Quantize a weight with a search for its scales, and with the moments of its inputs if any."""
    how = (like.blocksize, like.compress_statistics, like.quant_type, like.quant_storage)
    if moments is None:
        packed, state = quantize_4bit(weight, None, None, *how, scale_search=True)
    else:
        packed, state = quantize_with_moments(weight, moments, *how)
    return like.like(packed, requires_grad=False, quant_state=state, bnb_quantized=True)


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


def _dequantized(
    weight: QuantizedParameter, dtype: torch.dtype | None, others: torch.dtype
) -> Tensor:
    if dtype is None and isinstance(weight, Int8Params):
        dtype = weight.quantized_from or others
    return weight.dequantize().to(dtype)


def _usual_dtype(model: Module) -> torch.dtype:
    """Return the dtype of most elements that are not quantized; float32 if there are none."""
    count: collections.Counter[torch.dtype] = collections.Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point() and not isinstance(parameter, Int8Params | Params4bit):
            count[parameter.dtype] += parameter.numel()
    return max(count, key=count.__getitem__, default=torch.float32)


@contextlib.contextmanager
def _progress_bar(total: int, title: str, progress: bool) -> Iterator[Callable[[], Any]]:
    """Yield what to call after each layer."""
    try:
        tqdm = importlib.import_module("tqdm.auto") if progress else None
    except ImportError:
        tqdm = None
    if tqdm is None:
        yield lambda: None
        return
    with tqdm.tqdm(total=total, desc=title, unit="layer") as bar:
        yield bar.update
