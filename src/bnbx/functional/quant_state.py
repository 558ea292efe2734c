"""QuantState: what it takes to undo a quantization, and its form in a checkpoint."""

from __future__ import annotations

import math
import reprlib
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bnbx.codebooks import QUANT_TYPES_4BIT, get_4bit_type
from bnbx.ops import BLOCKSIZES_4BIT, FLOAT_DTYPES, blocks_of, error
from bnbx.utils import pack_dict_to_tensor, unpack_tensor_to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The names by which a checkpoint knows the dtypes.
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES}
PACKED_PREFIX = "bitsandbytes__"
#: Far above any blocksize in use; a file must not make a kernel reserve memory for more.
MAX_BLOCKSIZE = 1 << 20
#: Sizes beyond this are no tensor's, and their product would not fit the kernels' int64.
MAX_NUMEL = 2**63 - 1


def _packed_form(quant_type: str) -> Any:
    """Return a property for the packed form by its name in a checkpoint, as FSDP looks it up."""
    name = PACKED_PREFIX + quant_type

    def read(self: QuantState) -> Tensor:
        if self.quant_type != quant_type:
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg)
        packed: Tensor = self.as_dict(packed=True)[f"quant_state.{name}"]
        return packed

    return property(read, doc=f"The packed form of a state of type {quant_type}.")


class QuantState:
    """The scales, codebook, shape and dtype that belong to a quantized tensor.

    Parameters
    ----------
    absmax
        Scales, one per block: float32, or uint8 codes if they are quantized themselves (nested).
    shape
        Shape of the tensor before quantization.
    code
        Codebook, float32: 16 entries for the 4-bit types, 256 for blockwise 8-bit.
    blocksize
        Elements per block.
    quant_type
        ``"nf4"``, ``"fp4"``, or None for blockwise 8-bit.
    dtype
        Dtype of the tensor before quantization.
    offset
        Nested only: float32 scalar, the mean that was subtracted from the scales.
    state2
        Nested only: the state of the quantized scales.

    References
    ----------
    Dettmers et al. 2023, QLoRA, section 3, "Double Quantization".
    """

    valid_quant_types: ClassVar[tuple[str, ...]] = QUANT_TYPES_4BIT
    valid_qs_type_keys: ClassVar[list[str]] = [PACKED_PREFIX + name for name in QUANT_TYPES_4BIT]
    valid_qs_keys: ClassVar[list[str]] = [
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "quant_type",
        "blocksize",
        "dtype",
        "shape",
        "nested_blocksize",
        "nested_dtype",
        "nested_offset",
    ]

    # Properties and no __getattr__, which would slow every other attribute down.
    bitsandbytes__nf4 = _packed_form("nf4")
    bitsandbytes__fp4 = _packed_form("fp4")

    def __init__(
        self,
        absmax: Tensor,
        shape: Sequence[int] | None = None,
        code: Tensor | None = None,
        blocksize: int | None = None,
        quant_type: str | None = None,
        dtype: torch.dtype | None = None,
        offset: Tensor | None = None,
        state2: QuantState | None = None,
    ) -> None:
        # Typed Any: a caller may leave out what its use of the state does not need, and the
        # operation that does need it says so.
        self.absmax: Tensor = absmax
        self.shape: Any = shape
        self.code: Any = code
        self.blocksize: Any = blocksize
        self.quant_type: Any = quant_type
        self.dtype: Any = dtype
        self.offset: Any = offset
        self.state2: Any = state2
        self.nested: bool = state2 is not None

    def __getitem__(self, idx: int | slice) -> Any:
        """Return an entry of the list that stood for a state in the first releases."""
        nested = [self.offset, self.state2] if self.nested else None
        entries = [self.absmax, self.shape, self.dtype, self.blocksize, nested, self.quant_type]
        return entries[idx]

    def float_absmax(self) -> Tensor:
        """Return the scales as float32, one per block, whether they are nested or not."""
        if not self.nested:
            return self.absmax
        state2 = self.state2
        scales: Tensor = torch.ops.bnbx.dequantize_blockwise.default(
            self.absmax, state2.absmax, state2.code, state2.blocksize, torch.float32
        )
        return scales.add(self.offset)

    @classmethod
    def from_dict(cls, qs_dict: Mapping[str, Any], device: torch.device | str) -> QuantState:
        """Build a state from the entries that a checkpoint holds next to a quantized weight.

        Parameters
        ----------
        qs_dict
            ``as_dict``'s result, packed or not. Whatever precedes the last dot of a key is dropped.
        device
            Where the state is put.

        Returns
        -------
        QuantState
            With every field checked, against the others too.

        Raises
        ------
        ValueError
            If an entry is missing, not known, or not what it has to be.
        """
        entries = _Entries(_unpack(qs_dict), device)
        quant_type = entries.choice("quant_type", {None: None, **{t: t for t in QUANT_TYPES_4BIT}})
        state = cls(
            absmax=entries.tensor("absmax", torch.uint8 if entries.nested else torch.float32),
            shape=entries.shape(optional=quant_type is None),
            code=entries.code("quant_map", quant_type),
            blocksize=entries.blocksize("blocksize", () if quant_type is None else BLOCKSIZES_4BIT),
            quant_type=quant_type,
            dtype=entries.choice("dtype", DTYPE_NAMES),
            offset=entries.offset() if entries.nested else None,
            state2=entries.state2(cls) if entries.nested else None,
        )
        if state.shape is not None:
            _check_count("absmax", state.absmax, state.shape.numel(), state.blocksize)
        if state.nested:
            state2 = state.state2
            _check_count("nested_absmax", state2.absmax, state.absmax.numel(), state2.blocksize)
        return state

    def as_dict(self, packed: bool = False) -> dict[str, Any]:
        """Return the entries that a checkpoint holds next to a quantized weight.

        Parameters
        ----------
        packed
            Whether everything that is no tensor goes, as JSON, into one uint8 tensor named
            ``quant_state.bitsandbytes__<quant_type>``. Without a 4-bit type it never does.

        Returns
        -------
        dict
            Tensors by name, and without ``packed`` strings, numbers and a tuple.
        """
        entries: dict[str, Any] = {
            "quant_type": self.quant_type,
            "absmax": self.absmax,
            "blocksize": self.blocksize,
            "quant_map": self.code,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": None if self.shape is None else tuple(self.shape),
        }
        if self.nested:
            entries |= {
                "nested_absmax": self.state2.absmax,
                "nested_blocksize": self.state2.blocksize,
                # Its own memory: safetensors refuses tensors that share theirs.
                "nested_quant_map": self.state2.code.clone(),
                "nested_dtype": str(self.state2.dtype).removeprefix("torch."),
                "nested_offset": self.offset.item(),
            }
        if not packed or self.quant_type is None:
            return entries
        tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
        others = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
        key = f"quant_state.{PACKED_PREFIX}{self.quant_type}"
        return {**tensors, key: pack_dict_to_tensor(others)}

    def to(self, device: torch.device | str | int) -> QuantState:
        """Move the state, in place.

        Parameters
        ----------
        device
            Where to. A dtype is refused: the dtypes belong to the format.

        Returns
        -------
        QuantState
            Itself.

        Raises
        ------
        ValueError
            If ``device`` is no device.
        """
        if not isinstance(device, torch.device | str | int):
            raise error("device", "a torch device", device, "A state keeps its dtypes.")
        self.absmax = self.absmax.to(device=device)
        for name in ("code", "offset"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.to(device=device))
        if self.nested:
            self.state2.to(device)
        return self

    def __eq__(self, other: object) -> bool:
        """Whether both undo the same quantization, up to rounding of the scales."""
        if not isinstance(other, QuantState):
            return NotImplemented
        return (
            self.shape == other.shape
            and self.dtype == other.dtype
            and self.blocksize == other.blocksize
            and self.quant_type == other.quant_type
            and self.state2 == other.state2
            and _close(self.absmax, other.absmax)
            and _close(self.code, other.code)
            and _close(self.offset, other.offset)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shape = None if self.shape is None else tuple(self.shape)
        return (
            f"{type(self).__name__}(quant_type={self.quant_type!r}, shape={shape}, "
            f"dtype={self.dtype}, blocksize={self.blocksize}, nested={self.nested}, "
            f"device={self.absmax.device})"
        )


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b.to(a.device), atol=1e-6, equal_nan=True)


def _unpack(qs_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries without prefixes, those of the packed tensor among them."""
    entries = {key.rpartition(".")[2]: value for key, value in qs_dict.items()}
    if len(entries) < len(qs_dict):
        raise error("qs_dict", "the entries of one weight", f"several with one name: {[*qs_dict]}")
    packed = [key for key in entries if key.startswith(PACKED_PREFIX)]
    if packed:
        if len(packed) > 1 or packed[0] not in QuantState.valid_qs_type_keys:
            expected = f"one of {QuantState.valid_qs_type_keys}"
            raise error("quant_state", expected, f"{packed}")
        entries |= unpack_tensor_to_dict(entries.pop(packed[0]), f"quant_state.{packed[0]}")
        if f"{PACKED_PREFIX}{entries.get('quant_type')}" != packed[0]:
            expected = f"{packed[0].removeprefix(PACKED_PREFIX)!r}, as its key says"
            raise error("quant_type", expected, repr(entries.get("quant_type")))
    unknown = sorted(entries.keys() - set(QuantState.valid_qs_keys))
    if unknown:
        raise error("qs_dict", f"entries among {QuantState.valid_qs_keys}", f"{unknown}")
    return entries


def _check_count(name: str, absmax: Tensor, numel: int, blocksize: int) -> None:
    expected = blocks_of(numel, blocksize)
    if absmax.numel() != expected:
        why = f"one per block of {blocksize} of {numel} values"
        raise error(name, f"{expected} elements ({why})", absmax.numel())


class _Entries:
    """Takes the entries of a checkpoint one by one; a wrong one is a ValueError that names it."""

    def __init__(self, entries: dict[str, Any], device: torch.device | str) -> None:
        self.entries = entries
        self.device = device
        self.nested = any(name.startswith("nested_") for name in entries)

    def take(self, name: str) -> Any:
        if name not in self.entries:
            raise error(name, "an entry", f"none among {sorted(self.entries)}")
        return self.entries[name]

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        value = self.take(name)
        if not isinstance(value, Tensor):
            raise error(name, f"a tensor of {dtype}", type(value).__name__)
        if value.dtype != dtype:
            raise error(name, f"a tensor of {dtype}", value.dtype)
        return value.to(device=self.device)

    def code(self, name: str, quant_type: str | None) -> Tensor:
        code = self.tensor(name, torch.float32)
        expected = 256 if quant_type is None else 16
        if code.shape != (expected,):
            raise error(name, f"{expected} entries in 1 dimension", f"shape {tuple(code.shape)}")
        if quant_type is not None and not code.is_meta:
            # The kernels have the tables themselves; another one would be decoded wrongly.
            table = get_4bit_type(quant_type, code.device)
            if not torch.allclose(code, table, rtol=0.0, atol=1e-3):
                raise error(name, f"the table of {quant_type}", code.tolist())
        return code

    def blocksize(self, name: str, allowed: tuple[int, ...]) -> int:
        value = self.take(name)
        if type(value) is not int or value not in (allowed or range(1, MAX_BLOCKSIZE + 1)):
            expected = f"one of {allowed}" if allowed else f"1 to {MAX_BLOCKSIZE}"
            raise error(name, expected, reprlib.repr(value))
        return value

    def choice(self, name: str, choices: dict[Any, Any]) -> Any:
        value = self.take(name)
        if not isinstance(value, str | None) or value not in choices:
            raise error(name, f"one of {tuple(choices)}", reprlib.repr(value))
        return choices[value]

    def shape(self, *, optional: bool) -> torch.Size | None:
        value = self.take("shape")
        if value is None and optional:
            return None
        if not isinstance(value, list | tuple) or any(type(n) is not int or n < 0 for n in value):
            raise error("shape", "a list of sizes", reprlib.repr(value))
        if math.prod(max(n, 1) for n in value) > MAX_NUMEL:
            raise error("shape", f"at most {MAX_NUMEL} elements", reprlib.repr(value))
        return torch.Size(value)

    def offset(self) -> Tensor:
        value = self.take("nested_offset")
        # A larger number would become an infinity.
        limit = torch.finfo(torch.float32).max
        if type(value) not in {int, float} or not abs(value) <= limit:
            raise error("nested_offset", "a finite float32 number", reprlib.repr(value))
        return torch.tensor(float(value), dtype=torch.float32, device=self.device)

    def state2(self, cls: type[QuantState]) -> QuantState:
        return cls(
            absmax=self.tensor("nested_absmax", torch.float32),
            code=self.code("nested_quant_map", None),
            blocksize=self.blocksize("nested_blocksize", ()),
            dtype=self.choice("nested_dtype", DTYPE_NAMES),
        )
