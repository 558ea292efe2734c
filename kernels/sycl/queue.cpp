#include "sycl/queue.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <sycl/sycl.hpp>

namespace bnbx::gpu {

bool serves_cpu() {
  const char* set = std::getenv("BNBX_SYCL_CPU");
  return set != nullptr && std::string(set) == "1";
}

static sycl::device find_device() {
  const auto type = serves_cpu() ? sycl::info::device_type::cpu : sycl::info::device_type::gpu;
  const auto found = sycl::device::get_devices(type);
  if (found.empty()) {
    throw std::runtime_error(
        serves_cpu()
            ? "SYCL finds no OpenCL device for the CPU: install dpcpp-cpp-rt, and name its "
              "libintelocl.so in OCL_ICD_FILENAMES"
            : "SYCL finds no GPU: look at sycl-ls and at ONEAPI_DEVICE_SELECTOR");
  }
  return found[0];
}

const sycl::device& device() {
  static const sycl::device found = find_device();
  return found;
}

sycl::queue& queue_of(Stream stream) {
  if (stream != nullptr) return *static_cast<sycl::queue*>(stream);
  // Never destroyed: at the end of the process its library may be gone already.
  static auto* own = new sycl::queue(device(), sycl::property::queue::in_order{});
  return *own;
}

}  // namespace bnbx::gpu
