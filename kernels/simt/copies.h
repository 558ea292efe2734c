// Asynchronous copies (see device.h). What they bring appears as late as it may, when a thread
// waits for it; or, in other ways to run, as early as it may.
#pragma once

#include <cstdint>
#include <cstring>

#include "simt/emulator.h"

namespace bnbx::gpu {

inline void copy_async_16(void* shared, const void* global, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  const simt::Place place{"copy_async_16", file, line};
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0) {
    simt::fail(place, "expected addresses that are aligned to 16 bytes");
  }
  simt::Copies& copies = simt::copies();
  simt::Copy copy{shared, {}, copies.batch};
  memcpy(copy.bytes, global, sizeof(copy.bytes));
  if (simt::way().early_copies) memcpy(shared, copy.bytes, sizeof(copy.bytes));
  copies.pending.push_back(copy);
}

inline void commit_copies() { ++simt::copies().batch; }

template <int kPending>
void wait_for_copies() {
  simt::Copies& copies = simt::copies();
  size_t kept = 0;
  for (const simt::Copy& copy : copies.pending) {
    if (copy.batch >= copies.batch - kPending) {
      copies.pending[kept++] = copy;
    } else if (!simt::way().early_copies) {
      memcpy(copy.to, copy.bytes, sizeof(copy.bytes));
    }
  }
  copies.pending.resize(kept);
}

}  // namespace bnbx::gpu
