"""What stands for torch.mps.compile_shader's library in the tests, and what it refuses."""

from __future__ import annotations

import pytest
import torch

emulator = pytest.importorskip("bnbx._ext._metal_emulator")
library = emulator.library()
FULL = {"threads": 256, "group_size": 256}


def arguments(n=5):
    """Return those of dequantize_blockwise_float32: codes, absmax, n, code, blocksize, out."""
    codes = torch.arange(n, dtype=torch.uint8)
    return [codes, torch.tensor([2.0]), n, torch.linspace(-1, 1, 256), 64, torch.empty(n)]


def test_a_kernel_is_called_by_its_name():
    given = arguments()
    library.dequantize_blockwise_float32(*given, **FULL)
    assert torch.equal(given[-1], 2 * given[3][:5])
    assert "dequantize_blockwise_float32" in dir(library)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(RuntimeError, match="Failed to create function state object for: nothing"):
        _ = library.nothing


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (0, torch.zeros(5)),
        (1, torch.zeros(1, dtype=torch.float64)),
        (2, 5.0),
        (2, [5, 5]),
        (2, torch.tensor(5)),
        (5, torch.empty(5, dtype=torch.float16)),
    ],
)
def test_what_a_kernel_does_not_take_is_refused(number, value):
    given = arguments()
    given[number] = value
    with pytest.raises(ValueError, match=rf"^argument {number}: "):
        library.dequantize_blockwise_float32(*given, **FULL)


@pytest.mark.parametrize("value", [None, "5", [], [5, 5.0]])
def test_what_torch_does_not_pass_is_refused(value):
    given = arguments()
    given[2] = value
    with pytest.raises(RuntimeError, match="Unsupported argument type"):
        library.dequantize_blockwise_float32(*given, **FULL)


def test_a_tensor_with_gaps_is_refused():
    given = arguments()
    given[5] = torch.empty(10)[::2]
    with pytest.raises(RuntimeError, match="not contiguous"):
        library.dequantize_blockwise_float32(*given, **FULL)


def test_the_number_of_arguments_is_checked():
    with pytest.raises(ValueError, match="expected 6 arguments, got 5"):
        library.dequantize_blockwise_float32(*arguments()[:5], **FULL)


@pytest.mark.parametrize(("threads", "group_size"), [(0, 256), (255, 256), (2048, 2048)])
def test_parts_of_groups_are_refused(threads, group_size):
    with pytest.raises(ValueError, match=r"^(threads|group_size): expected"):
        library.dequantize_blockwise_float32(*arguments(), threads=threads, group_size=group_size)


def test_the_module_of_a_mac_says_what_it_has():
    module = pytest.importorskip("bnbx._ext._metal")
    assert module.operations() == emulator.operations()
    assert module.describe() == {"isa": "metal", "available_isas": ["metal"]}


def test_ways_are_chosen_by_name():
    before = emulator.describe()["isa"]
    emulator.select_isa("warp32_shuffled")
    assert emulator.describe()["isa"] == "warp32_shuffled"
    emulator.select_isa(before)
    with pytest.raises(ValueError, match="^isa: expected one of"):
        emulator.select_isa("warp64")
