"""A built HIP module on a machine without an AMD GPU: it loads, and says what is missing."""

from __future__ import annotations

import importlib.util
import re
import shutil

import pytest
from tests.backends.gpu_module import described, exported, launched, needed, paged

from bnbx.ops import CONTRACTS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bnbx._ext._hip") is None, reason="no HIP module is built"
)
NO_GPU = r"HIP error \d+ \(hipError\w+\): .*driver sees no GPU.*groups render and video"


def test_it_loads_without_torch_and_says_what_it_is():
    found = described("_hip")
    assert re.fullmatch(r"hip \d+\.\d+", found["isa"])
    assert found["available_isas"] == [found["isa"]]


def test_a_launch_says_what_is_missing():
    said = launched("_hip")
    assert set(said) == set(CONTRACTS)
    for name, message in said.items():
        assert re.match(f"RuntimeError: .*{NO_GPU}", message), name


def test_paged_memory_says_what_is_missing():
    said = paged("_hip")
    assert len(said) == 2
    for message in said:
        assert re.search(NO_GPU, message)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_of_rocm_only_the_runtime_is_linked():
    libraries = [name for name in needed("_hip") if re.match(r"lib(amd|hip|hsa|roc)", name)]
    assert [name.partition(".")[0] for name in libraries] == ["libamdhip64"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_others_see_nothing_but_the_module():
    assert {name for name in exported("_hip") if re.search("bnbx|PyInit", name)} == {"PyInit__hip"}
