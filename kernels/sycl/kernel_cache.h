// Kernels that the device's compiler makes of the sources in this library, when they are launched
// first. This process keeps them in memory; SYCL keeps them in files for the next, by their source,
// options and device, where SYCL_CACHE_PERSISTENT is 1 (src/bnbx/backends/xpu.py sees to it).
#pragma once

#include <string>
#include <sycl/kernel.hpp>
#include <sycl/queue.hpp>
#include <utility>
#include <vector>

#include "cuda/device.h"

namespace bnbx::gpu {

// The files of kernels/ by their paths there; CMake writes this function (embed.cmake).
const std::vector<std::pair<std::string, std::string>>& sources();

// `shared_bytes` is what the kernel finds as dynamic_shared(). Throws std::runtime_error, with what
// the compiler said, if the device cannot have the kernel.
sycl::kernel kernel_for(const sycl::queue& queue, const Kernel& kernel, int64_t shared_bytes);

}  // namespace bnbx::gpu
