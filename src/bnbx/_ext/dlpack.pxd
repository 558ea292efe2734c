# What is used of DLPack 1.3, <https://github.com/dmlc/dlpack/blob/v1.3/include/dlpack/dlpack.h>.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MAJOR_VERSION = 1

# Kinds of element types.
cdef enum:
    UINT = 1
    FLOAT = 2
    BFLOAT = 4

cdef struct Device:
    int32_t device_type
    int32_t device_id

cdef struct DataType:
    uint8_t code  # one of the kinds above
    uint8_t bits
    uint16_t lanes

# A tensor as it is at the moment; it owns nothing.
cdef struct Tensor:
    void* data
    Device device
    int32_t ndim
    DataType dtype
    int64_t* shape
    int64_t* strides
    uint64_t byte_offset

# A tensor and what to call when nobody uses it any more.
cdef struct Managed:
    Tensor tensor
    void* context
    void (*deleter)(Managed* tensor) noexcept nogil

cdef struct Version:
    uint32_t major
    uint32_t minor

cdef struct ExchangeHeader:
    Version version
    ExchangeHeader* older

# What a type has as __dlpack_c_exchange_api__.
cdef struct Exchange:
    ExchangeHeader header
    void* managed_tensor_allocator
    void* managed_tensor_from_py_object_no_sync
    void* managed_tensor_to_py_object_no_sync
    int (*dltensor_from_py_object_no_sync)(void* py_object, Tensor* out) noexcept
    void* current_work_stream
