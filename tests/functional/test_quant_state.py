"""QuantState: round trips, and every way in which a checkpoint's entries can be wrong."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bnbx import functional as F
from bnbx.functional import QuantState
from bnbx.utils import pack_dict_to_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

PACKED_KEY = "quant_state.bitsandbytes__nf4"
SHAPE = (20, 1000)  # 313 blocks of 64, so that the scales have two blocks and a partial one


def quantized(*, nested: bool = True, quant_type: str = "nf4", **kwargs: Any) -> QuantState:
    weight = torch.randn(SHAPE, dtype=torch.float16)
    return F.quantize_4bit(weight, compress_statistics=nested, quant_type=quant_type, **kwargs)[1]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("prefix", ["", "model.layers.0.weight."])
def test_dict_round_trip(
    nested: bool, quant_type: str, packed: bool, prefix: str, device: str
) -> None:
    state = quantized(nested=nested, quant_type=quant_type).to(device)
    entries = {prefix + key: value for key, value in state.as_dict(packed=packed).items()}
    before = dict(entries)
    loaded = QuantState.from_dict(entries, device)
    assert loaded == state
    assert torch.equal(loaded.float_absmax(), state.float_absmax())
    assert loaded.shape == torch.Size(SHAPE)
    assert loaded.dtype == torch.float16
    assert loaded.nested == nested
    assert entries.keys() == before.keys()
    assert all(entries[key] is value for key, value in before.items())


def test_packed_dict_has_the_keys_of_the_format() -> None:
    packed = quantized().as_dict(packed=True)
    tensors = ["absmax", "nested_absmax", "nested_quant_map", "quant_map"]
    assert sorted(packed) == [*tensors, PACKED_KEY]
    others = json.loads(bytes(packed[PACKED_KEY].tolist()))
    assert list(others) == [
        "quant_type",
        "blocksize",
        "dtype",
        "shape",
        "nested_blocksize",
        "nested_dtype",
        "nested_offset",
    ]
    assert others["shape"] == [*SHAPE]
    assert others["dtype"] == "float16"
    assert others["nested_dtype"] == "float32"


def test_blockwise_state_round_trip() -> None:
    for nested in (False, True):
        codes, state = F.quantize_blockwise(torch.randn(5000), blocksize=256, nested=nested)
        entries = state.as_dict(packed=True)
        assert entries["quant_type"] is None
        loaded = QuantState.from_dict(entries, "cpu")
        assert loaded == state
        expected = F.dequantize_blockwise(codes, state)
        assert torch.equal(F.dequantize_blockwise(codes, loaded), expected)


def test_built_by_keyword() -> None:
    state = quantized()
    state2 = QuantState(
        absmax=state.state2.absmax,
        code=state.state2.code,
        blocksize=state.state2.blocksize,
        dtype=state.state2.dtype,
    )
    again = QuantState(
        absmax=state.absmax,
        shape=state.shape,
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
        offset=state.offset,
        state2=state2,
    )
    assert again == state
    assert again.nested
    assert not state2.nested


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
@pytest.mark.parametrize("nested", [False, True])
def test_copies(clone: Callable[[QuantState], QuantState], nested: bool) -> None:
    state = quantized(nested=nested)
    again = clone(state)
    assert again is not state
    assert again == state
    if clone is copy.deepcopy:
        again.absmax.zero_()
        assert again != state


def test_list_layout_of_the_first_releases() -> None:
    plain = quantized(nested=False)
    assert plain[0] is plain.absmax
    assert plain[1:] == [plain.shape, torch.float16, 64, None, "nf4"]
    nested = quantized()
    assert nested[4][0] is nested.offset
    assert nested[4][1] is nested.state2
    absmax, shape, dtype, blocksize, _, quant_type = nested
    assert absmax is nested.absmax
    assert (shape, dtype, blocksize, quant_type) == (SHAPE, torch.float16, 64, "nf4")


def test_packed_entry_as_attribute() -> None:
    state = quantized(quant_type="nf4")
    assert torch.equal(state.bitsandbytes__nf4, state.as_dict(packed=True)[PACKED_KEY])
    for name in ("bitsandbytes__fp4", "bitsandbytes__None", "no_such_thing"):
        with pytest.raises(AttributeError, match=name):
            getattr(state, name)
    with pytest.raises(AttributeError):
        QuantState(torch.ones(1)).bitsandbytes__nf4  # noqa: B018


def test_to_moves_in_place_and_keeps_dtypes() -> None:
    state = quantized()
    assert state.to("meta") is state
    tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    assert all(t.is_meta for t in tensors)
    assert [t.dtype for t in tensors] == [torch.uint8] + 4 * [torch.float32]
    for wrong in (torch.float16, None, torch.ones(1)):
        with pytest.raises(ValueError, match=r"device: expected .* got"):
            quantized().to(wrong)  # type: ignore[arg-type]
    without_code = QuantState(torch.ones(2), blocksize=64, quant_type="nf4")
    assert without_code.to(torch.device("meta")).absmax.is_meta


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("absmax", torch.zeros(313, dtype=torch.uint8)),
        ("absmax", torch.zeros(312, dtype=torch.uint8)),
        ("absmax", torch.zeros(313)),
        ("code", torch.zeros(16)),
        ("code", None),
        ("shape", torch.Size([1000, 20])),
        ("dtype", torch.float32),
        ("blocksize", 128),
        ("quant_type", "fp4"),
        ("offset", torch.tensor(5.0)),
        ("offset", None),
        ("state2", None),
    ],
)
def test_inequality(field: str, value: object) -> None:
    state = quantized()
    other = copy.deepcopy(state)
    assert state == other
    setattr(other, field, value)
    assert state != other
    assert state != "a state"


def test_repr_says_what_it_is() -> None:
    assert "nf4" in repr(quantized())
    assert "(20, 1000)" in repr(quantized())


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()
HUGE = 2**70
#: Entry -> wrong values; all of them are refused with an error that names the entry.
WRONG: dict[str, list[Any]] = {
    "absmax": [
        MISSING,
        None,
        "absmax",
        [1, 2],
        torch.zeros(313),
        torch.zeros(313, dtype=torch.int8),
        torch.zeros(312, dtype=torch.uint8),
        torch.zeros(314, dtype=torch.uint8),
        torch.zeros(0, dtype=torch.uint8),
    ],
    "quant_map": [
        MISSING,
        3,
        torch.zeros(16),
        torch.zeros(16, dtype=torch.float64),
        F.get_4bit_type("fp4"),
        F.get_4bit_type("nf4").bfloat16(),
        F.get_4bit_type("nf4")[:15],
        F.get_4bit_type("nf4").view(4, 4),
        F.create_dynamic_map(),
        torch.full((16,), torch.nan),
    ],
    "nested_absmax": [
        MISSING,
        0.5,
        torch.zeros(2, dtype=torch.float16),
        torch.zeros(2, dtype=torch.uint8),
        torch.zeros(1),
        torch.zeros(3),
    ],
    "nested_quant_map": [
        MISSING,
        "dynamic",
        torch.zeros(16),
        torch.zeros(255),
        torch.zeros(256, dtype=torch.float16),
        torch.zeros(16, 16),
    ],
    "quant_type": [MISSING, "int4", "NF4", "", 4, ["nf4"], {"nf4": 1}],
    "blocksize": [MISSING, None, "64", 64.0, True, 0, -64, 63, 16, 8192, HUGE, 10**4000, [64]],
    "dtype": [MISSING, None, "float64", "int8", "load", "__class__", "torch.float16", 16, ["x"]],
    "shape": [
        MISSING,
        None,
        20000,
        "20000",
        [20, 1000.0],
        [True, 20000],
        [-20, -1000],
        [20, None],
        [HUGE, 1],
        [0, HUGE],
        [2**40, 2**40],
        [[20, 1000]],
        {"20": 1000},
        [2] * 20000,
    ],
    "nested_blocksize": [MISSING, None, "256", 256.0, True, 0, -256, [256], HUGE, 1 + (1 << 20)],
    "nested_dtype": [MISSING, None, "float64", "uint8", "nn", 32],
    "nested_offset": [
        MISSING,
        None,
        "0.5",
        [0.5],
        True,
        float("nan"),
        float("inf"),
        float("-inf"),
        1e39,
        10**400,
    ],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


def _name(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{[*value.shape]}"
    return repr(value)[:24]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "value"), CASES, ids=_name)
def test_wrong_entry_is_refused_by_name(name: str, value: object, packed: bool) -> None:
    entries = quantized().as_dict()
    if value is MISSING:
        del entries[name]
    else:
        entries[name] = value
    key = name
    if packed:
        others = {k: v for k, v in entries.items() if not isinstance(v, torch.Tensor)}
        entries = {k: v for k, v in entries.items() if k not in others}
        entries[PACKED_KEY] = pack_dict_to_tensor(others)
        # What is too large for the packed entry is refused before the entry itself is looked at.
        key = f"(quant_state.*|{name})"
    with pytest.raises(ValueError, match=rf"^{key}: expected .*, got"):
        QuantState.from_dict(entries, "cpu")


@pytest.mark.parametrize(
    ("name", "value", "blamed"),
    [
        ("shape", [20, 1063], "absmax"),
        ("shape", [], "absmax"),
        ("shape", [0, 5], "absmax"),
        ("blocksize", 128, "absmax"),
        ("nested_blocksize", 128, "nested_absmax"),
        ("nested_blocksize", 512, "nested_absmax"),
        ("nested_blocksize", 1 << 20, "nested_absmax"),
        ("quant_type", None, "quant_map"),
    ],
)
def test_entries_that_contradict_each_other(name: str, value: object, blamed: str) -> None:
    entries = {**quantized().as_dict(), name: value}
    with pytest.raises(ValueError, match=rf"^{blamed}: expected .*, got"):
        QuantState.from_dict(entries, "cpu")


def test_plain_state_with_the_codes_of_a_nested_one() -> None:
    entries = quantized(nested=False).as_dict()
    entries["absmax"] = torch.zeros(313, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^absmax: expected .*float32, got torch.uint8"):
        QuantState.from_dict(entries, "cpu")


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(0, dtype=torch.uint8),
        torch.full((100,), 255, dtype=torch.uint8),
        torch.tensor([*b'{"quant_type": "nf4"'], dtype=torch.uint8),
        torch.tensor([*b"[1, 2]"], dtype=torch.uint8),
        torch.tensor([*b"null"], dtype=torch.uint8),
        torch.tensor([*b"[" * 60000], dtype=torch.uint8),
        torch.tensor([*b"9" * 60000], dtype=torch.uint8),
        torch.full((65537,), ord(" "), dtype=torch.uint8),
        torch.zeros(4, 4, dtype=torch.uint8),
        torch.zeros(16),
        torch.zeros(16, dtype=torch.uint8, device="meta"),
        b"{}",
        None,
    ],
    ids=_name,
)
def test_packed_entry_that_is_no_json_object(packed: object) -> None:
    entries = {**quantized().as_dict(packed=True), PACKED_KEY: packed}
    with pytest.raises(ValueError, match=r"^quant_state.bitsandbytes__nf4: expected .*, got"):
        QuantState.from_dict(entries, "cpu")


def test_packed_entry_must_name_its_own_type() -> None:
    entries = quantized().as_dict(packed=True)
    entries["quant_state.bitsandbytes__fp4"] = entries.pop(PACKED_KEY)
    with pytest.raises(ValueError, match="^quant_type: expected 'fp4'.*got 'nf4'"):
        QuantState.from_dict(entries, "cpu")
    entries["quant_state.bitsandbytes__int3"] = entries.pop("quant_state.bitsandbytes__fp4")
    with pytest.raises(ValueError, match="^quant_state: expected .*nf4.* got .*int3"):
        QuantState.from_dict(entries, "cpu")


def test_unknown_or_ambiguous_entries() -> None:
    entries = quantized().as_dict(packed=True)
    with pytest.raises(ValueError, match=r"^qs_dict: expected .*, got \['weight_format'\]"):
        QuantState.from_dict({**entries, "weight_format": torch.zeros(1)}, "cpu")
    with pytest.raises(ValueError, match="^qs_dict: expected the entries of one weight"):
        QuantState.from_dict({**entries, "other.absmax": entries["absmax"]}, "cpu")
    with pytest.raises(ValueError, match="^quant_state: expected one of"):
        QuantState.from_dict({**entries, "bitsandbytes__fp4": entries[PACKED_KEY]}, "cpu")
    hidden = pack_dict_to_tensor({**json.loads(bytes(entries[PACKED_KEY].tolist())), "x": 1})
    with pytest.raises(ValueError, match=r"^qs_dict: expected .*, got \['x'\]"):
        QuantState.from_dict({**entries, PACKED_KEY: hidden}, "cpu")
    with pytest.raises(ValueError, match="^quant_type: expected"):
        QuantState.from_dict({}, "cpu")
