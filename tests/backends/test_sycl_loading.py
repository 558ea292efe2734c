"""Which torch the SYCL module serves, and that it shares torch's SYCL library."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from bnbx.backends import xpu
from bnbx.backends.loading import OtherTorchError

MAPS = "7f00-7f01 r-xp 0 08:01 1 {}\n7f01-7f02 r--p 0 08:01 1 /usr/lib/libc.so.6\n"


@pytest.fixture
def installed(monkeypatch):
    """Say whether the package has the module."""
    return lambda found: monkeypatch.setattr(
        importlib.util, "find_spec", lambda _: object() if found else None
    )


def test_a_torch_of_another_kind_is_told_so(monkeypatch, installed):
    monkeypatch.setattr(torch.version, "xpu", None)
    installed(True)
    with pytest.raises(OtherTorchError, match="is built without XPU"):
        xpu.find()


def test_nothing_is_said_where_nothing_is_for_these_devices(monkeypatch, installed):
    monkeypatch.setattr(torch.version, "xpu", None)
    installed(False)
    assert xpu.find() is None


def test_a_torch_for_them_is_told_that_the_kernels_are_missing(monkeypatch, installed):
    monkeypatch.setattr(torch.version, "xpu", "20250302")
    installed(False)
    with pytest.raises(LookupError, match="built without them"):
        xpu.find()


def test_a_torch_for_them_gets_the_module_and_a_cache(monkeypatch, installed):
    monkeypatch.setattr(torch.version, "xpu", "20250302")
    monkeypatch.setattr(os, "environ", {})
    installed(True)
    found = xpu.find()
    assert found is not None
    assert (found.module, found.backend) == ("_sycl", xpu.XpuBackend)
    assert os.environ["SYCL_CACHE_PERSISTENT"] == "1"


def test_the_user_decides_about_the_cache(monkeypatch):
    monkeypatch.setenv("SYCL_CACHE_PERSISTENT", "0")
    xpu.keep_compiled_kernels()
    assert os.environ["SYCL_CACHE_PERSISTENT"] == "0"


def test_two_libraries_of_sycl_are_refused():
    both = MAPS.format("/opt/torch/libsycl.so.8") + MAPS.format("/venv/lib/libsycl.so.9.0.0")
    with pytest.raises(ImportError, match=r"libsycl\.so\.8, /venv/lib/libsycl\.so\.9"):
        xpu._check_libraries(both)


def test_one_library_mapped_in_parts_is_one():
    xpu._check_libraries(MAPS.format("/venv/lib/libsycl.so.9") * 3)
