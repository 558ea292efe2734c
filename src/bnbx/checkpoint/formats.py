"""The formats of a quantized weight in a checkpoint: its entries, known before it is quantized."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

from bnbx.checkpoint.shard_writer import Slot
from bnbx.functional import int8_vectorwise_quant, quantize_4bit
from bnbx.functional.four_bit import NESTED_BLOCKSIZE
from bnbx.functional.quant_state import PACKED_PREFIX
from bnbx.nn.module8bit import ROW_FORMAT
from bnbx.ops import FLOAT_DTYPES, QUANT_TYPES_4BIT, blocks_of, check_4bit_type, error, packed_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from bnbx.functional import QuantState

FORMATS = (*QUANT_TYPES_4BIT, "int8")
STORAGE_DTYPES = (torch.uint8, *FLOAT_DTYPES)


@dataclasses.dataclass(frozen=True)
class Settings4bit:
    """NF4 or FP4, as ``Linear4bit`` saves it.

    Attributes
    ----------
    kind
        ``"nf4"`` or ``"fp4"``.
    double_quant, blocksize, storage_dtype
        As ``compress_statistics``, ``blocksize`` and ``quant_storage`` of ``quantize_4bit``.
    compute_dtype
        What products are computed in; None for the weights' dtype. It goes into config.json.
    scale_search
        As for ``quantize_4bit``.
    """

    kind: str
    double_quant: bool = False
    blocksize: int = 64
    compute_dtype: torch.dtype | None = None
    storage_dtype: torch.dtype = torch.uint8
    scale_search: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_4bit_type(self.blocksize, self.kind)
        if self.storage_dtype not in STORAGE_DTYPES:
            raise error("storage_dtype", f"one of {STORAGE_DTYPES}", self.storage_dtype)
        if self.compute_dtype not in {None, *FLOAT_DTYPES}:
            raise error("compute_dtype", f"one of {FLOAT_DTYPES}", self.compute_dtype)

    def slots(self, name: str, shape: tuple[int, ...]) -> list[Slot]:
        """Return what a weight becomes in the file."""
        numel = math.prod(shape)
        blocks = blocks_of(numel, self.blocksize)
        elements = -(-packed_bytes(numel) // self.storage_dtype.itemsize)
        slots = [
            Slot(name, self.storage_dtype, (elements, 1)),
            Slot(f"{name}.absmax", torch.uint8 if self.double_quant else torch.float32, (blocks,)),
            Slot(f"{name}.quant_map", torch.float32, (16,)),
            Slot(f"{name}.quant_state.{PACKED_PREFIX}{self.kind}", torch.uint8, None),
        ]
        if self.double_quant:
            nested = (blocks_of(blocks, NESTED_BLOCKSIZE),)
            slots.append(Slot(f"{name}.nested_absmax", torch.float32, nested))
            slots.append(Slot(f"{name}.nested_quant_map", torch.float32, (256,)))
        return slots

    def encode(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Quantize a weight and return its entries, those that ``slots`` has announced."""
        packed, state = quantize_4bit(
            weight,
            blocksize=self.blocksize,
            compress_statistics=self.double_quant,
            quant_type=self.kind,
            quant_storage=self.storage_dtype,
            scale_search=self.scale_search,
        )
        return self.entries(name, packed, state)

    @staticmethod
    def entries(name: str, packed: Tensor, state: QuantState) -> dict[str, Tensor]:
        """Return the entries of a weight that is quantized already."""
        statistics = state.as_dict(packed=True)
        return {name: packed, **{f"{name}.{key}": value for key, value in statistics.items()}}

    def config(self, weights_dtype: torch.dtype) -> dict[str, Any]:
        """Return what ``BitsAndBytesConfig`` writes into config.json, but the list of what is kept.

        Parameters
        ----------
        weights_dtype
            Dtype of the weights before they were quantized.
        """
        return _config(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=_name(self.compute_dtype or weights_dtype),
            bnb_4bit_quant_storage=_name(self.storage_dtype),
        )


@dataclasses.dataclass(frozen=True)
class Settings8bit:
    """LLM.int8(), as ``Linear8bitLt`` saves it.

    Attributes
    ----------
    threshold
        Of outliers, for config.json: the weights do not depend on it.
    """

    threshold: float = 6.0
    kind: str = dataclasses.field(default="int8", init=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0.0 <= self.threshold < math.inf:
            raise error("threshold", "a finite number of at least 0", self.threshold)

    def slots(self, name: str, shape: tuple[int, ...]) -> list[Slot]:
        """Return what a weight becomes in the file."""
        prefix = name.removesuffix("weight")
        return [
            Slot(name, torch.int8, shape),
            Slot(f"{prefix}SCB", torch.float32, shape[:1]),
            Slot(f"{prefix}weight_format", torch.uint8, ()),
        ]

    def encode(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Quantize a weight and return its entries, those that ``slots`` has announced."""
        codes, scales, _ = int8_vectorwise_quant(weight)
        prefix = name.removesuffix("weight")
        layout = torch.tensor(ROW_FORMAT, dtype=torch.uint8)
        return {name: codes, f"{prefix}SCB": scales, f"{prefix}weight_format": layout}

    def config(self, weights_dtype: torch.dtype) -> dict[str, Any]:  # noqa: ARG002
        """Return what ``BitsAndBytesConfig`` writes into config.json, but the list of what is kept.

        Parameters
        ----------
        weights_dtype
            Dtype of the weights before they were quantized.
        """
        return _config(load_in_8bit=True, llm_int8_threshold=float(self.threshold))


Settings = Settings4bit | Settings8bit


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _config(**changes: Any) -> dict[str, Any]:
    """Return the entries of ``BitsAndBytesConfig().to_dict()`` with changes."""
    entries: dict[str, Any] = {
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": False,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
        **changes,
    }
    # Readers of the first releases look for the names with an underscore.
    return {**entries, **{f"_{key}": entries[key] for key in ("load_in_4bit", "load_in_8bit")}}
