# cython: language_level=3, embedsignature=True
# cython: binding=False
"""The backend for Metal with its kernels as C++, in an emulator that runs them on a CPU.

``library()`` stands for what torch.mps.compile_shader returns, and refuses what it refuses.
"""

import struct

include "metal_host.pxi"


cdef extern from "metal/shim/registry.h" namespace "bnbx::metal_shim":
    cdef cppclass Argument:
        string dtype
        void* data
        int64_t bytes
        cpp_bool is_tensor

    vector[string] kernel_names()
    void launch(const string& name, const vector[Argument]& arguments, int64_t threads,
                int64_t group_size) except +

cdef extern from "metal/shim/ways.h" namespace "bnbx::metal_shim":
    string way()
    vector[string] ways()
    void select_way(const string& name) except +


def describe():
    """Return the way in which the emulator runs kernels, and those that it has."""
    return {"isa": way().decode(), "available_isas": [name.decode() for name in ways()]}


def select_isa(str name):
    """Run kernels in another way from now on; ValueError if there is none of this name."""
    select_way(name.encode())


def numbers(value):
    """Return the dtype and the bytes of a number or of a list of numbers, as torch makes them."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if values and all(isinstance(each, int) for each in values):
        return "int64", struct.pack(f"{len(values)}q", *values)
    if values and isinstance(values[0], float):
        return "float32", struct.pack(f"{len(values)}f", *values)
    raise RuntimeError(f"Unsupported argument type: {value!r}")


class Kernel:
    """One kernel of the library."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *arguments, threads, group_size):
        cdef vector[Argument] given
        cdef Argument one
        cdef bytes content
        kept = []
        for value in arguments:
            one.is_tensor = hasattr(value, "data_ptr")
            if one.is_tensor:
                if not value.is_contiguous():
                    raise RuntimeError(f"{self.name}: a tensor that is not contiguous")
                dtype, one.bytes = str(value.dtype).removeprefix("torch."), value.nbytes
                one.data = <void*> <uintptr_t> value.data_ptr()
            else:
                dtype, content = numbers(value)
                kept.append(content)
                one.bytes, one.data = len(content), <void*> <char*> content
            one.dtype = dtype.encode()
            given.push_back(one)
        launch(self.name.encode(), given, threads, group_size)


class Library:
    """All kernels, by their names."""

    def __getattr__(self, name):
        if name not in dir(self):
            raise RuntimeError(f"Failed to create function state object for: {name}")
        return Kernel(name)

    def __dir__(self):
        return [name.decode() for name in kernel_names()]


def library():
    """Return the kernels."""
    return Library()
