"""The weights of a checkpoint in 4 bits, chosen by what its model does with a text."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any, cast

import torch

from bnbx.checkpoint.finite import check_finite
from bnbx.checkpoint.optional import need
from bnbx.checkpoint.skeleton import model_class, read_config
from bnbx.checkpoint.text import load_tokenizer, read_tokens
from bnbx.ops import error
from bnbx.quantize import quantize_
from bnbx.quantize.calibration import METHODS
from bnbx.quantize.random_tokens import RANDOM, longest_window

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from bnbx.checkpoint.formats import Settings4bit
    from bnbx.checkpoint.layers import Weights
    from bnbx.checkpoint.source import Checkpoint
    from bnbx.functional import QuantState

#: Tokens that the model reads at a time, unless it is made for fewer.
WINDOW = 1024
DEFAULT_TOKENS = 16384
_NEEDS = "calibration"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the model is to read, and what is done with it.

    Attributes
    ----------
    text
        A UTF-8 file; no special tokens are added. None for tokens at random.
    settings
        The format.
    method
        As ``calibration_method`` of ``quantize_``.
    tokens
        How many of the text's tokens are read, by default ``DEFAULT_TOKENS``.
    """

    text: Path | None
    settings: Settings4bit
    method: str | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        if self.method is not None and self.method not in METHODS:
            raise error("calibration_method", f"one of {METHODS}", repr(self.method))
        if self.tokens is None:
            return
        if self.text is None:
            expected = f"the default, because {RANDOM!r} is of fixed length"
            raise error("calibration_tokens", expected, self.tokens)
        if self.tokens < 2:
            raise error("calibration_tokens", "at least 2", self.tokens)

    def encoded(
        self, checkpoint: Checkpoint, weights: Weights, *, progress: bool
    ) -> dict[str, dict[str, Tensor]]:
        """Load the model, quantize it in memory, and return each weight's entries.

        Parameters
        ----------
        checkpoint
            A directory with a model of transformers, which is loaded with the dtype of its weights,
            and its tokenizer. No code of it is run.
        weights
            What to quantize, as transformers' model told.
        progress
            Whether to show a progress bar.

        Raises
        ------
        ValueError
            If the model cannot be calibrated with tokens, a file is not as it has to be, or a
            tensor has a NaN or an infinity.
        ImportError
            If transformers is not installed.
        """
        if not weights.modules:
            got = f"layers from {weights.source}"
            hint = "Calibration runs the model: it needs transformers and config.json."
            raise error("calibration", "layers that the model has told", got, hint)
        tokens = None
        if self.text is not None:
            tokens = _tokens(self.text, checkpoint, self.tokens or DEFAULT_TOKENS)
        for name in checkpoint.tensors:
            for piece in checkpoint.file_of(name).chunks(name):
                check_finite(name, piece)
        model, settings = _load(checkpoint, weights), self.settings
        batches: Any = RANDOM
        if tokens is not None:
            windows = tokens.split(longest_window(model, WINDOW))
            batches = [{"input_ids": window.unsqueeze(0)} for window in windows]
        quantize_(
            model,
            settings.kind,
            skip=lambda name, _: name not in weights.modules,
            double_quant=settings.double_quant,
            blocksize=settings.blocksize,
            quant_storage=settings.storage_dtype,
            calibration=batches,
            calibration_method=self.method,
            progress=progress and sys.stderr.isatty(),
        )
        entries = {}
        for module, name in weights.modules.items():
            weight: Any = model.get_submodule(module).weight
            state: QuantState = weight.quant_state
            entries[name] = settings.entries(name, weight.data, state)
        return entries


def _tokens(text: Path, checkpoint: Checkpoint, count: int) -> Tensor:
    tokens = read_tokens(load_tokenizer(checkpoint.root, _NEEDS), text, count)
    if len(tokens) < count:
        hint = "Take a longer text, or fewer tokens."
        raise error("calibration_tokens", f"at most {len(tokens)}", count, hint)
    return tokens


def _load(checkpoint: Checkpoint, weights: Weights) -> nn.Module:
    """Return the model, whose layers to quantize are all ``torch.nn.Linear``."""
    config = read_config(checkpoint)
    kind = model_class(need("transformers", _NEEDS), config)
    if kind.main_input_name != "input_ids" or config.is_encoder_decoder:
        raise error("src", "a model that reads tokens and nothing else", kind.__name__)
    dtypes = {checkpoint.tensors[name].dtype for name in weights.transposed}
    if len(dtypes) > 1:
        raise error("src", "weights of one dtype for calibration", sorted(map(str, dtypes)))
    model, found = kind.from_pretrained(
        checkpoint.root,
        dtype=dtypes.pop(),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise error("src", "all tensors of the model", f"none for {sorted(found['missing_keys'])}")
    model.config.use_cache = False
    for module, name in weights.modules.items():
        if weights.transposed[name]:
            _replace_conv1d(model, module)
    return cast("nn.Module", model)


def _replace_conv1d(model: nn.Module, name: str) -> None:
    """Put a linear layer in the place of a ``Conv1D``, whose weight is the transposed one."""
    old: Any = model.get_submodule(name)
    inputs, outputs = old.weight.shape
    new = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    new.weight = torch.nn.Parameter(old.weight.t().contiguous())
    new.bias = old.bias
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
