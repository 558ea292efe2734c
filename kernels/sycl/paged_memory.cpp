// Paged memory: shared by the host and the device, or pinned.
#include "bnbx/paged_memory.h"

#include <new>
#include <sycl/usm.hpp>

#include "sycl/queue.h"

namespace bnbx {

// What belongs to no queue: allocations.
static sycl::context context() { return gpu::device().get_platform().khr_get_default_context(); }

bool has_managed_memory() { return gpu::device().has(sycl::aspect::usm_shared_allocations); }

void* paged_alloc(int64_t bytes, bool managed) {
  void* memory = managed ? sycl::malloc_shared(bytes, gpu::device(), context())
                         : sycl::malloc_host(bytes, context());
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void paged_free(void* memory, int, bool) noexcept { sycl::free(memory, context()); }

void prefetch(const void* memory, int64_t bytes, bool to_device, Stream stream) {
  if (to_device) gpu::queue_of(stream).prefetch(memory, bytes);
}

}  // namespace bnbx
