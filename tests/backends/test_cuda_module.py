"""A built CUDA module on a machine without a GPU: it loads, and says what is missing."""

from __future__ import annotations

import re
import shutil

import pytest
from tests.backends.gpu_module import described, exported, launched, needed, paged

from bnbx.backends import cuda_modules
from bnbx.ops import CONTRACTS

MODULES = [f"_cuda{major}{minor}" for major, minor in cuda_modules.installed()]
pytestmark = pytest.mark.skipif(not MODULES, reason="no CUDA module is built")
each_module = pytest.mark.parametrize("module", MODULES)


@each_module
def test_it_loads_without_torch_and_says_what_it_is(module):
    toolkit = f"cuda {module[5:7]}.{module[7:]}"
    assert described(module) == {"isa": toolkit, "available_isas": [toolkit]}


@each_module
def test_a_launch_says_what_is_missing(module):
    said = launched(module)
    assert set(said) <= set(CONTRACTS)
    assert said
    for name, message in said.items():
        assert re.match(r"RuntimeError: .*CUDA error \d+ \(cudaError\w+\)", message), name
        assert re.search("driver is missing or older|driver sees no GPU", message), name


@each_module
def test_paged_memory_says_what_is_missing(module):
    said = paged(module)
    assert len(said) == 2
    for message in said:
        assert re.search(r"CUDA error \d+ .*driver (is missing or older|sees no GPU)", message)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
@each_module
def test_no_cuda_library_is_linked(module):
    libraries = needed(module)
    assert any(name.startswith("libc.so") for name in libraries)
    assert not [name for name in libraries if re.match(r"lib(cu|nv)", name)]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
@each_module
def test_others_see_nothing_but_the_module(module):
    seen = {name for name in exported(module) if re.search("bnbx|cuda|PyInit", name)}
    assert seen == {f"PyInit_{module}"}
