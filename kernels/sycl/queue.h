// Queues and devices.
#pragma once

#include <sycl/device.hpp>
#include <sycl/queue.hpp>

#include "bnbx/kernels.h"

namespace bnbx::gpu {

// Whether the module serves tensors of the CPU (BNBX_SYCL_CPU=1), as in tests on machines without
// one of Intel's GPUs.
bool serves_cpu();

// The device that there is: the first GPU, or in tests the CPU. Throws std::runtime_error if SYCL
// finds none.
const sycl::device& device();

// The queue that a stream stands for. No stream stands for a queue of the CPU's own, on which the
// host has to wait: tensors of the CPU know no queue.
sycl::queue& queue_of(Stream stream);

}  // namespace bnbx::gpu
