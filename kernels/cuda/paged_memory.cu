// Paged memory: managed by the driver, or pinned.
#include <new>

#include "bnbx/paged_memory.h"
#include "cuda/device.h"

namespace bnbx {

static int current_device() {
  int device = 0;
  gpu::check(cudaGetDevice(&device), "asking for the current device");
  return device;
}

static int attribute(cudaDeviceAttr name) {
  int value = 0;
  gpu::check(cudaDeviceGetAttribute(&value, name, current_device()), "asking about managed memory");
  return value;
}

bool has_managed_memory() {
  // Without the second one, which Windows lacks, all of it moves at each launch, and the CPU may
  // not read it while a kernel runs.
  return attribute(cudaDevAttrManagedMemory) && attribute(cudaDevAttrConcurrentManagedAccess);
}

void* paged_alloc(int64_t bytes, bool managed) {
  void* memory = nullptr;
  const cudaError_t error = managed ? cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal)
                                    : cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // or the next launch would be blamed for it
    throw std::bad_alloc();
  }
  gpu::check(error, "allocating paged memory");
  return memory;
}

void paged_free(void* memory, int device, bool managed) noexcept {
  int current = device;
  static_cast<void>(cudaGetDevice(&current));
  if (current != device) static_cast<void>(cudaSetDevice(device));
  static_cast<void>(cudaDeviceSynchronize());
  static_cast<void>(managed ? cudaFree(memory) : cudaFreeHost(memory));
  if (current != device) static_cast<void>(cudaSetDevice(current));
  static_cast<void>(cudaGetLastError());  // when the process ends, the runtime may be gone already
}

void prefetch(const void* memory, int64_t bytes, bool to_device, Stream stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
#if CUDART_VERSION >= 13000
  cudaMemLocation to = {};
  to.type = to_device ? cudaMemLocationTypeDevice : cudaMemLocationTypeHost;
  to.id = to_device ? current_device() : 0;
  gpu::check(cudaMemPrefetchAsync(memory, bytes, to, 0, queue), "moving paged memory");
#else
  const int to = to_device ? current_device() : cudaCpuDeviceId;
  gpu::check(cudaMemPrefetchAsync(memory, bytes, to, queue), "moving paged memory");
#endif
}

}  // namespace bnbx
