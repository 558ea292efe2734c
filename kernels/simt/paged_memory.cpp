// Paged memory of the emulator: all memory is main memory, and a wrong address is an error.
#include "bnbx/paged_memory.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

namespace bnbx {

static std::mutex mutex;
static std::map<const char*, int64_t> managed_blocks;  // the bytes of each, by its address

bool has_managed_memory() { return true; }

void* paged_alloc(int64_t bytes, bool managed) {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  if (managed) {
    const std::lock_guard<std::mutex> lock(mutex);
    managed_blocks[static_cast<char*>(memory)] = bytes;
  }
  return memory;
}

void paged_free(void* memory, int, bool managed) noexcept {
  if (managed) {
    const std::lock_guard<std::mutex> lock(mutex);
    managed_blocks.erase(static_cast<char*>(memory));
  }
  std::free(memory);
}

void prefetch(const void* memory, int64_t bytes, bool, Stream) {
  const auto* first = static_cast<const char*>(memory);
  const std::lock_guard<std::mutex> lock(mutex);
  auto block = managed_blocks.upper_bound(first);
  if (block == managed_blocks.begin() || first + bytes > (--block)->first + block->second) {
    throw std::logic_error("prefetch: expected a part of a managed block");
  }
}

}  // namespace bnbx
