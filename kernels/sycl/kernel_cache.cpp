#include "sycl/kernel_cache.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <sycl/sycl.hpp>
#include <tuple>

namespace bnbx::gpu {

namespace syclex = sycl::ext::oneapi::experimental;
using Bundle = sycl::kernel_bundle<sycl::bundle_state::executable>;

// As on the CPU, products and sums keep their own rounding; kernels ask for fmaf by name. What
// BNBX_SYCL_OPTIONS has comes last: in tests -O0, since the CPU's driver takes 15 s for a large
// kernel whose loops are unrolled.
static std::vector<std::string> options_for(int64_t shared_bytes) {
  std::vector<std::string> options{"-std=c++17",
                                   "-I.",
                                   "-Iinclude",
                                   "-DBNBX_SYCL",
                                   "-DBNBX_SHARED_BYTES=" + std::to_string(shared_bytes),
                                   "-ffp-contract=off",
                                   "-fno-sycl-id-queries-fit-in-int",
                                   "-Wno-unknown-pragmas"};
  if (const char* more = std::getenv("BNBX_SYCL_OPTIONS")) {
    std::istringstream words(more);
    for (std::string word; words >> word;) options.push_back(word);
  }
  return options;
}

static void check(const sycl::device& device) {
  const auto sizes = device.get_info<sycl::info::device::sub_group_sizes>();
  if (std::find(sizes.begin(), sizes.end(), kGroup) == sizes.end()) {
    throw std::runtime_error(device.get_info<sycl::info::device::name>() +
                             ": the kernels need subgroups of " + std::to_string(kGroup) +
                             ", which this device does not have");
  }
}

static Bundle compile(const sycl::context& context, const sycl::device& device,
                      const Kernel& kernel, int64_t shared_bytes) {
  syclex::include_files files;
  for (const auto& [path, text] : sources()) files.add(path, text);
  // GCC leaves out the namespace of a kernel that it has in an unnamed one. The compiler of 2026.2
  // crashes where the types of its arguments are not complete yet.
  const std::string text = "#include \"" + kernel.source + "\"\nusing namespace bnbx::gpu;\n" +
                           "static_assert(decltype(parameters_of(" + kernel.name +
                           "))::kBytes <= kArgumentBytes);\n";
  auto source = syclex::create_kernel_bundle_from_source(context, syclex::source_language::sycl,
                                                         text, syclex::properties{files});
  std::string log;
  try {
    return syclex::build(
        source, {device},
        syclex::properties{syclex::build_options{options_for(shared_bytes)},
                           syclex::registered_names{kernel.name}, syclex::save_log{&log}});
  } catch (const sycl::exception& failure) {
    std::string what = "compiling " + kernel.name + " for " +
                       device.get_info<sycl::info::device::name>() + ": " + failure.what() + log;
    if (!device.has(sycl::aspect::fp64)) {
      what +=
          "\nThis device has no double precision; the driver emulates it with "
          "OverrideDefaultFP64Settings=1 and IGC_EnableDPEmulation=1 in the environment.";
    }
    throw std::runtime_error(what);
  }
}

static sycl::kernel make(const sycl::queue& queue, const Kernel& kernel, int64_t shared_bytes) {
  check(queue.get_device());
  return compile(queue.get_context(), queue.get_device(), kernel, shared_bytes)
      .ext_oneapi_get_kernel(kernel.name);
}

sycl::kernel kernel_for(const sycl::queue& queue, const Kernel& kernel, int64_t shared_bytes) {
  // Whole pages, so that a kernel that is launched with many sizes is not compiled for each.
  constexpr int64_t kPage = 4096;
  const int64_t limit =
      static_cast<int64_t>(queue.get_device().get_info<sycl::info::device::local_mem_size>());
  const int64_t whole = std::max<int64_t>(ceil_div(shared_bytes, kPage) * kPage, 16);
  const int64_t bytes = whole > limit ? shared_bytes : whole;
  using Key = std::tuple<const Kernel*, int64_t, size_t, size_t>;
  static std::mutex mutex;
  static auto* known = new std::map<Key, sycl::kernel>;  // see queue_of()
  const Key key{&kernel, bytes, std::hash<sycl::context>{}(queue.get_context()),
                std::hash<sycl::device>{}(queue.get_device())};
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known->find(key);
  if (found == known->end()) {
    found = known->emplace(key, make(queue, kernel, bytes)).first;
  }
  return found->second;
}

}  // namespace bnbx::gpu
