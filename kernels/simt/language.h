// The words of CUDA C++ that kernels use, for a C++ compiler.
#pragma once

#include <math.h>

#include <cstdint>
#include <type_traits>

#include "simt/asan.h"
#include "simt/emulator.h"

// Internal linkage, so that AddressSanitizer guards the shared arrays in a kernel: it leaves alone
// what the linker may merge.
#define __global__ static
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
// One block runs at a time.
#ifdef BNBX_ASAN
#define __shared__ static
#else
#define __shared__ static thread_local  // so that shared.cpp finds them and can fill them
#endif

struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
  dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

// The emulator sets them when a thread goes on.
inline bnbx::simt::Shape threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  bnbx::simt::wait_for_block({"__syncthreads", file, line});
}

// No thread is interrupted, and each sees what another one has written at once.
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace bnbx::simt {

// The types for which the hardware has atomic operations.
template <class T>
inline constexpr bool is_atomic_integer =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

template <class T>
T exchange(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}

}  // namespace bnbx::simt

template <class T>
T atomicAdd(T* at, std::common_type_t<T> value) {
  static_assert(bnbx::simt::is_atomic_integer<T> || std::is_same_v<T, float>);
  return bnbx::simt::exchange<T>(at, *at + value);
}

template <class T>
T atomicMax(T* at, std::common_type_t<T> value) {
  static_assert(bnbx::simt::is_atomic_integer<T>);
  return bnbx::simt::exchange<T>(at, *at < value ? value : *at);
}

template <class T>
T atomicMin(T* at, std::common_type_t<T> value) {
  static_assert(bnbx::simt::is_atomic_integer<T>);
  return bnbx::simt::exchange<T>(at, value < *at ? value : *at);
}

template <class T>
T atomicOr(T* at, std::common_type_t<T> value) {
  static_assert(bnbx::simt::is_atomic_integer<T>);
  return bnbx::simt::exchange<T>(at, *at | value);
}

template <class T>
T atomicExch(T* at, std::common_type_t<T> value) {
  static_assert(bnbx::simt::is_atomic_integer<T> || std::is_same_v<T, float>);
  return bnbx::simt::exchange<T>(at, value);
}

template <class T>
T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> value) {
  static_assert(bnbx::simt::is_atomic_integer<T>);
  return bnbx::simt::exchange<T>(at, *at == expected ? value : *at);
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
