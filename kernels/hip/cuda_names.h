// The names of CUDA's runtime that paged_memory.cu uses. HIP has the same functions under its own.
#pragma once

#define cudaError_t hipError_t
#define cudaErrorMemoryAllocation hipErrorOutOfMemory
#define cudaGetLastError hipGetLastError
#define cudaGetDevice hipGetDevice
#define cudaSetDevice hipSetDevice
#define cudaDeviceSynchronize hipDeviceSynchronize
#define cudaDeviceAttr hipDeviceAttribute_t
#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaDevAttrManagedMemory hipDeviceAttributeManagedMemory
#define cudaDevAttrConcurrentManagedAccess hipDeviceAttributeConcurrentManagedAccess
#define cudaMallocManaged hipMallocManaged
#define cudaMemAttachGlobal hipMemAttachGlobal
#define cudaHostAlloc hipHostMalloc
#define cudaHostAllocPortable hipHostMallocPortable
#define cudaFree hipFree
#define cudaFreeHost hipHostFree
#define cudaStream_t hipStream_t
#define cudaMemPrefetchAsync hipMemPrefetchAsync
#define cudaCpuDeviceId hipCpuDeviceId
