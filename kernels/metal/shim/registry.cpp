#include "metal/shim/registry.h"

#include <map>

#include "simt/language.h"

namespace bnbx::metal_shim {
namespace {

// What every Apple GPU has at least: kernels may not count on more.
constexpr int64_t kMostThreads = 1024;
constexpr size_t kMostBuffers = 31;
constexpr int64_t kMostBytes = 4096;  // of an argument that is no tensor

std::map<std::string, Bind>& kernels() {
  static std::map<std::string, Bind> all;
  return all;
}

void check(const std::vector<Argument>& arguments, int64_t threads, int64_t group_size) {
  if (arguments.size() > kMostBuffers) throw std::invalid_argument("expected at most 31 arguments");
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Argument& argument = arguments[i];
    if (!argument.is_tensor && argument.bytes > kMostBytes) refuse(i, argument);
  }
  if (group_size < 1 || group_size > kMostThreads) {
    throw std::invalid_argument("group_size: expected 1 to 1024, got " +
                                std::to_string(group_size));
  }
  // Metal would run a last group of fewer threads, whose SIMD-groups lack lanes.
  if (threads < 1 || threads % group_size != 0) {
    throw std::invalid_argument("threads: expected a multiple of group_size, got " +
                                std::to_string(threads));
  }
}

}  // namespace

void register_kernel(const std::string& name, Bind bind) {
  if (!kernels().emplace(name, std::move(bind)).second) {
    throw std::logic_error("two kernels have the name " + name);
  }
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const auto& entry : kernels()) names.push_back(entry.first);
  return names;
}

uint32_t place(int number) {
  const uint32_t tid = threadIdx.x;
  const uint32_t places[] = {tid, blockIdx.x, tid % simt::kLanes, tid / simt::kLanes};
  return places[number];
}

void launch(const std::string& name, const std::vector<Argument>& arguments, int64_t threads,
            int64_t group_size) {
  const auto found = kernels().find(name);
  if (found == kernels().end()) throw std::invalid_argument("no kernel has the name " + name);
  check(arguments, threads, group_size);
  const Bound thread = found->second(arguments);
  simt::run({static_cast<uint32_t>(threads / group_size), 1, 1}, static_cast<int>(group_size), 0,
            thread);
}

}  // namespace bnbx::metal_shim
