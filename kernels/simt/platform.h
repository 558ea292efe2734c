// device.h for the emulator.
#pragma once

#include <type_traits>

#include "cuda/pack_by_bits.h"
#include "simt/copies.h"
#include "simt/emulator.h"
#include "simt/group.h"
#include "simt/language.h"
#include "simt/mma.h"

namespace bnbx::gpu {

static constexpr int kGroup = simt::kLanes;
static constexpr bool kHasMma = true;

using Blocks = dim3;

template <class T>
T* dynamic_shared() {
  static_assert(alignof(T) <= 16);
  return static_cast<T*>(simt::shared_memory());
}

template <class T>
uint32_t pack(float low, float high, T type) {
  return pack_by_bits(low, high, type);
}

template <class T>
void unpack(uint32_t pair, float* low, float* high, T type) {
  unpack_by_bits(pair, low, high, type);
}

inline int64_t shared_limit() { return simt::kMaxDynamicShared; }

// Bytes that a kernel's arguments may have in all of CUDA's versions.
static constexpr int kArgumentBytes = 4096;

// Two, so that kernels that stay on the device have blocks with little and with much to do.
inline int multiprocessors() { return 2; }

template <class... P, class... A>
void launch(void (*kernel)(P...), Blocks blocks, int threads, int64_t shared_bytes, Stream,
            A... arguments) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "arguments are copied to the device");
  static_assert((sizeof(P) + ... + 0) <= kArgumentBytes);
  simt::run({blocks.x, blocks.y, blocks.z}, threads, shared_bytes,
            [&] { kernel(static_cast<P>(arguments)...); });
}

}  // namespace bnbx::gpu
