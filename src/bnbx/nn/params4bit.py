"""Params4bit: a weight in 4 bits with its quantization state."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.functional import QuantState, dequantize_4bit, quantize_4bit
from bnbx.nn.parameter import QuantizedParameter
from bnbx.ops import FLOAT_DTYPES, blocks_of, error, packed_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

STORAGE_DTYPES = (torch.uint8, *FLOAT_DTYPES)


def _of_state(*path: str) -> Any:
    """Return a property that reads an attribute of the quantization state, or of its nested state.

    FSDP looks the entries of a state_dict up by name: ``weight.nested_absmax`` is
    ``module.weight.nested_absmax``.
    """

    def read(self: Params4bit) -> Any:
        value: Any = self.quant_state
        for name in path:
            value = getattr(value, name)
        return value

    return property(read, doc=f"``quant_state.{'.'.join(path)}``")


class Params4bit(QuantizedParameter):
    """A weight that is quantized to 4 bits when it is moved to a device.

    Parameters
    ----------
    data
        The weight in floating point; or packed codes, with ``quant_state`` and ``bnb_quantized``.
    requires_grad
        Whether it asks for gradients; not with an integer dtype. Codes get none in any case.
    quant_state
        What undoes the quantization.
    blocksize
        Elements that share a scale: 32, 64 (the default), 128, ..., 4096.
    compress_statistics
        Whether the scales are quantized too (double quantization).
    quant_type
        ``"nf4"`` or ``"fp4"``.
    quant_storage
        The dtype whose elements hold the codes: uint8, bfloat16, float16 or float32.
    module
        The module whose ``quant_state`` attribute is to follow this parameter's: FSDP replaces
        parameters by plain tensors, and the module must know the state then.
    bnb_quantized
        Whether ``data`` holds packed codes.
    kwargs
        Kept as attributes, so that ``Params4bit(data, **other.__dict__)`` takes over all of them.

    References
    ----------
    Dettmers et al. 2023, QLoRA, section 3.
    """

    SETTINGS = (
        *("blocksize", "compress_statistics", "quant_type", "quant_storage"),
        *("quant_state", "bnb_quantized"),
    )

    blocksize: int
    compress_statistics: bool
    quant_type: str
    quant_storage: torch.dtype
    quant_state: QuantState | None
    bnb_quantized: bool
    module: Any

    absmax = _of_state("absmax")
    code = _of_state("code")
    quant_map = _of_state("code")
    offset = _of_state("offset")
    state2 = _of_state("state2")
    nested_absmax = _of_state("state2", "absmax")
    nested_blocksize = _of_state("state2", "blocksize")
    nested_quant_map = _of_state("state2", "code")
    nested_dtype = _of_state("state2", "dtype")
    nested_offset = _of_state("offset")

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = False,
        quant_state: QuantState | None = None,
        blocksize: int | None = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
        module: torch.nn.Module | None = None,
        bnb_quantized: bool = False,
        **kwargs: Any,
    ) -> Self:
        data = torch.empty(0) if data is None else data
        self = torch.Tensor._make_subclass(cls, data, requires_grad and data.is_floating_point())
        self.__dict__.update(kwargs)
        self.blocksize = 64 if blocksize is None else blocksize
        self.compress_statistics = compress_statistics
        self.quant_type = quant_type
        self.quant_storage = quant_storage
        self.quant_state = quant_state
        self.bnb_quantized = bnb_quantized
        self.module = module
        return self

    @classmethod
    def from_prequantized(
        cls,
        data: Tensor,
        quantized_stats: dict[str, Any],
        requires_grad: bool = False,
        device: torch.device | str | int | None = None,
        module: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a parameter of what a checkpoint holds.

        Parameters
        ----------
        data
            The packed codes; their dtype becomes ``quant_storage``.
        quantized_stats
            The entries next to it, as ``QuantState.from_dict`` reads them. Not changed.
        requires_grad
            Whether it asks for gradients.
        device
            Where it is put; by default where ``data`` is.
        module
            See the constructor.
        kwargs
            Kept as attributes.

        Returns
        -------
        Params4bit
            Quantized.

        Raises
        ------
        ValueError
            If an entry is missing or wrong, or if codes and statistics do not belong together.
        """
        if data.dtype not in STORAGE_DTYPES:
            raise error("data", f"one of {STORAGE_DTYPES}", data.dtype)
        data = data.to(data.device if device is None else device)
        state = QuantState.from_dict(quantized_stats, device=data.device)
        got, expected = data.numel() * data.element_size(), packed_bytes(state.shape.numel())
        if not 0 <= got - expected < data.element_size():
            what = f"{expected} bytes of packed codes for shape {tuple(state.shape)}"
            raise error("data", what, f"{got} bytes of {data.dtype}")
        return cls(
            data,
            requires_grad,
            state,
            state.blocksize,
            state.nested,
            state.quant_type,
            data.dtype,
            module,
            bnb_quantized=True,
            **kwargs,
        )._published()

    @property
    def holds_codes(self) -> bool:
        """Whether the data is packed codes."""
        return self.bnb_quantized

    def _quantize(self, weight: Tensor) -> Self:
        packed, self.quant_state = quantize_4bit(
            weight,
            blocksize=self.blocksize,
            compress_statistics=self.compress_statistics,
            quant_type=self.quant_type,
            quant_storage=self.quant_storage,
        )
        self.replace_data(packed)
        self.bnb_quantized = True
        return self._published()

    def dequantize(self) -> Tensor:
        """Return the weight in floating point, in the dtype that it had.

        Raises
        ------
        ValueError
            If it holds a part of packed codes that does not begin and end with a block.
        """
        if not self.bnb_quantized:
            return self.plain()
        return dequantize_4bit(self.plain(), self.quant_state)

    def statistics(self) -> list[Tensor]:
        """Return the scales and codebooks; nothing if it is not quantized."""
        entries = {} if self.quant_state is None else self.quant_state.as_dict()
        return [value for value in entries.values() if isinstance(value, Tensor)]

    def _published(self) -> Self:
        if self.module is not None:
            self.module.quant_state = self.quant_state
        return self

    def _follow(self, device: torch.device) -> None:
        if self.quant_state is not None and device.type != "meta":
            self.quant_state = moved(self.quant_state, device)
        self._published()

    def _piece(self, view: Tensor) -> Tensor:
        """Return packed codes; without a state if they do not begin and end with a block."""
        piece = self.like(view, quant_state=None)
        if self.bnb_quantized and self.quant_state is not None and view.is_contiguous():
            first = view.storage_offset() - self.plain().storage_offset()
            itemsize = view.element_size()
            total = self.quant_state.shape.numel()
            start = min(2 * first * itemsize, total)
            stop = min(2 * (first + view.numel()) * itemsize, total)
            piece.quant_state = part(self.quant_state, start, stop)
            if piece.quant_state is not None:
                piece.compress_statistics = piece.quant_state.nested
        return piece


def moved(state: QuantState, device: torch.device) -> QuantState:
    """Return the state on a device: itself if it is there, else another; it may be shared."""
    if state.absmax.device == device:
        return state
    state = copy.copy(state)
    state.state2 = copy.copy(state.state2)
    return state.to(device)


def part(state: QuantState, start: int, stop: int) -> QuantState | None:
    """Return the state of the elements from ``start`` to ``stop`` of the flattened weight.

    Its shape is that of whole rows where it is whole rows, else flat. A part of nested scales that
    does not begin with one of their blocks gets them in float32. None if the elements do not begin
    and end with a block.
    """
    total = state.shape.numel()
    if start % state.blocksize or (stop % state.blocksize and stop != total):
        return None
    new = copy.copy(state)
    row = state.shape[-1] if len(state.shape) == 2 else 0
    whole_rows = row > 0 and start % row == 0 and stop % row == 0
    new.shape = torch.Size([(stop - start) // row, row] if whole_rows else [stop - start])
    blocks = slice(start // state.blocksize, blocks_of(stop, state.blocksize))
    if not state.nested:
        new.absmax = state.absmax[blocks]
        return new
    nested = state.state2.blocksize
    if blocks.start % nested:
        new.absmax = state.float_absmax()[blocks]
        new.offset = new.state2 = None
        new.nested = False
        return new
    new.absmax = state.absmax[blocks]
    new.state2 = copy.copy(state.state2)
    new.state2.absmax = state.state2.absmax[blocks.start // nested : blocks_of(blocks.stop, nested)]
    return new


def stored_as(packed: Tensor, storage: torch.dtype, numel: int) -> Tensor:
    """Return packed codes of ``numel`` elements in the elements of another dtype."""
    if packed.dtype == storage:
        return packed
    codes = packed.contiguous().view(-1).view(torch.uint8)[: packed_bytes(numel)]
    codes = torch.nn.functional.pad(codes, (0, -codes.numel() % storage.itemsize))
    return codes.view(storage).unsqueeze(1)
