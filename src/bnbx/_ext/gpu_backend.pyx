# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
# cython: binding=False
"""Binding of a backend for GPUs: what every backend has, and paged memory."""

include "backend.pyx"

from cpython.pycapsule cimport PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF

from bnbx._ext cimport paged_memory as m


cdef extern from "Python.h":
    int Py_IsInitialized() nogil


def has_managed_memory():
    """Return whether pages can move to the current device while the CPU uses them too."""
    return m.has_managed_memory()


def prefetch(uintptr_t address, int64_t nbytes, bint to_device, uintptr_t stream):
    """Queue that managed memory moves to the current device, or from it to main memory."""
    with nogil:
        m.prefetch(<const void*> address, nbytes, to_device, <k.Stream> stream)


cdef class PagedBlock:
    """Paged memory of the current device; it lives as long as this or a tensor in it.

    Attributes are the address, the number of bytes as ``used``, and whether it is ``managed``.
    """

    cdef readonly uintptr_t address
    cdef readonly int64_t used
    cdef readonly bint managed
    cdef int device
    cdef dlpack.Managed tensor
    cdef object __weakref__

    def __cinit__(self, int64_t nbytes, int device, bint managed):
        self.used, self.device, self.managed = nbytes, device, managed
        with nogil:
            self.address = <uintptr_t> m.paged_alloc(nbytes, managed)

    def __dealloc__(self):
        if self.address:
            with nogil:
                m.paged_free(<void*> self.address, self.device, self.managed)

    def capsule(self):
        """Return the bytes for ``torch.from_dlpack``, which may be asked for once."""
        self.tensor.tensor.data = <void*> self.address
        self.tensor.tensor.device.device_type = device_type
        self.tensor.tensor.device.device_id = self.device
        self.tensor.tensor.ndim = 1
        self.tensor.tensor.dtype.code = dlpack.UINT
        self.tensor.tensor.dtype.bits = 8
        self.tensor.tensor.dtype.lanes = 1
        self.tensor.tensor.shape = &self.used
        self.tensor.context = <void*> self
        self.tensor.deleter = let_go
        capsule = PyCapsule_New(&self.tensor, "dltensor", let_go_of_unused)
        Py_INCREF(self)
        return capsule


cdef void let_go(dlpack.Managed* tensor) noexcept nogil:
    # When the process ends, tensors may outlive Python, and the system takes the memory back.
    if Py_IsInitialized():
        with gil:
            Py_DECREF(<object> tensor.context)


cdef void let_go_of_unused(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor"):  # torch renames those that it takes
        let_go(<dlpack.Managed*> PyCapsule_GetPointer(capsule, "dltensor"))
