# The interface of kernels/include/bnbx/paged_memory.h.
from libc.stdint cimport int64_t
from libcpp cimport bool as cpp_bool

from bnbx._ext.kernels cimport Stream


cdef extern from "bnbx/paged_memory.h" namespace "bnbx" nogil:
    cpp_bool has_managed_memory() except +
    void* paged_alloc(int64_t bytes, cpp_bool managed) except +
    void paged_free(void* memory, int device, cpp_bool managed)
    void prefetch(const void* memory, int64_t bytes, cpp_bool to_device, Stream stream) except +
