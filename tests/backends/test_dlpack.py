"""How the extension reads tensors: the table of functions that torch offers, by its version."""

from __future__ import annotations

import ctypes
import importlib

import pytest
import torch

from bnbx.backends import BACKENDS

pytestmark = pytest.mark.skipif(
    not next(b for b in BACKENDS if b.name == "cpu").operations, reason="needs the CPU kernels"
)
NAME = b"dlpack_exchange_api"
CPU = 1  # kDLCPU


class Table(ctypes.Structure):
    """``DLPackExchangeAPI``; what it begins with is the same in all versions."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 5),
    )


def capsule(table):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    return new(ctypes.addressof(table), NAME, None)


def address(of):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return get(of, NAME)


@pytest.mark.parametrize("major", [0, 1, 2])
def test_a_table_without_the_function_or_of_another_version_is_refused(major):
    ext = importlib.import_module("bnbx._ext._cpu")
    with pytest.raises(ImportError, match="expected tensors of DLPack 1"):
        ext.read_tensors_by(capsule(Table(major, 0, None)), CPU)


def test_an_older_table_behind_a_new_one_is_taken():
    ext = importlib.import_module("bnbx._ext._cpu")
    own = torch.Tensor.__dlpack_c_exchange_api__
    ext.read_tensors_by(capsule(Table(2, 0, address(own))), CPU)
    ext.read_tensors_by(own, CPU)


def test_tensors_of_another_device_are_refused():
    ext = importlib.import_module("bnbx._ext._cpu")
    own = torch.Tensor.__dlpack_c_exchange_api__
    p, g, state = torch.ones(3), torch.ones(3), torch.zeros(3)
    step = ("lion", [g], [p], [state], [], [], [1], 0.5, 0.9, 0.99, 0.0, 0.0, 0.0, 0.0)
    ext.read_tensors_by(own, 2)  # kDLCUDA
    try:
        with pytest.raises(RuntimeError, match=r"p\[0\] .* the kernel cannot read them"):
            torch.ops.bnbx.optimizer_update_32bit(*step)
    finally:
        ext.read_tensors_by(own, CPU)
    assert p.tolist() == [1.0] * 3
    torch.ops.bnbx.optimizer_update_32bit(*step)
    assert p.tolist() == [0.5] * 3
