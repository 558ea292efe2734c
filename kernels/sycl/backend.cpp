// What the backend says about itself, and how kernels start.
#include <stdexcept>
#include <sycl/sycl.hpp>

#include "bnbx/kernels.h"
#include "common/operations.h"
#include "sycl/kernel_cache.h"
#include "sycl/queue.h"

namespace bnbx {

std::vector<std::string> operations() { return every_operation(); }

std::string isa() {
  return "sycl " + std::to_string(__LIBSYCL_MAJOR_VERSION) + "." +
         std::to_string(__LIBSYCL_MINOR_VERSION);
}

std::vector<std::string> available_isas() { return {isa()}; }

void select_isa(const std::string& name) {
  if (name != isa()) throw std::invalid_argument("this module is for " + isa() + ", got " + name);
}

namespace gpu {

int64_t shared_limit() {
  static const auto bytes =
      static_cast<int64_t>(device().get_info<sycl::info::device::local_mem_size>());
  return bytes;
}

// A GPU's Xe cores; of other devices the units that run blocks.
static int count_multiprocessors() {
  using sycl::ext::intel::info::device::gpu_slices;
  using sycl::ext::intel::info::device::gpu_subslices_per_slice;
  if (device().has(sycl::aspect::ext_intel_gpu_slices) &&
      device().has(sycl::aspect::ext_intel_gpu_subslices_per_slice)) {
    return static_cast<int>(device().get_info<gpu_slices>() *
                            device().get_info<gpu_subslices_per_slice>());
  }
  return static_cast<int>(device().get_info<sycl::info::device::max_compute_units>());
}

int multiprocessors() {
  static const int count = count_multiprocessors();
  return count;
}

void start(const Kernel& kernel, Blocks blocks, int threads, int64_t shared_bytes, Stream stream,
           const Argument* arguments, int count) {
  sycl::queue& queue = queue_of(stream);
  const sycl::kernel compiled = kernel_for(queue, kernel, shared_bytes);
  const sycl::range<3> local(1, 1, threads);
  const sycl::range<3> global(blocks.z, blocks.y, static_cast<size_t>(blocks.x) * threads);
  queue.submit([&](sycl::handler& handler) {
    for (int i = 0; i < count; ++i) {
      const Argument& argument = arguments[i];
      if (argument.is_pointer) {
        handler.set_arg(i, *static_cast<void* const*>(argument.data));
      } else {
        using sycl::ext::oneapi::experimental::raw_kernel_arg;
        handler.set_arg(i, raw_kernel_arg(argument.data, argument.bytes));
      }
    }
    handler.parallel_for(sycl::nd_range<3>(global, local), compiled);
  });
  if (stream == nullptr) queue.wait_and_throw();
}

}  // namespace gpu
}  // namespace bnbx
