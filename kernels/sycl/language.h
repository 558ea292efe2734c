// The words of CUDA C++ that kernels use, in SYCL. The host's compiler reads them too, since it
// compiles the launches that stand beside the kernels; there no kernel is ever called.
#pragma once

#include <cmath>
#include <cstdint>
#include <sycl/atomic_ref.hpp>
#include <sycl/ext/oneapi/experimental/free_function_traits.hpp>
#include <sycl/ext/oneapi/free_function_queries.hpp>
#include <sycl/ext/oneapi/kernel_properties/properties.hpp>
#include <sycl/group_algorithm.hpp>
#include <sycl/group_barrier.hpp>

// 32 is a requirement, and a device that cannot meet it refuses the kernel.
#ifdef __SYCL_DEVICE_ONLY__
#define __global__                                                                           \
  SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((::sycl::ext::oneapi::experimental::nd_range_kernel<3>)) \
  SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((::sycl::ext::oneapi::experimental::sub_group_size<32>))
#define __shared__ static __attribute__((opencl_local))
#else
#define __global__ [[maybe_unused]] static
#define __shared__ static
#endif
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
  dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

namespace bnbx::sycl_words {

inline sycl::nd_item<3> item() { return sycl::ext::oneapi::this_work_item::get_nd_item<3>(); }

// SYCL's last dimension is the one in which neighbours lie side by side.
template <class Range>
dim3 dim3_of(const Range& range) {
  return dim3(static_cast<uint32_t>(range[2]), static_cast<uint32_t>(range[1]),
              static_cast<uint32_t>(range[0]));
}

template <class T>
using Atomic = sycl::atomic_ref<T, sycl::memory_order::relaxed, sycl::memory_scope::device>;

}  // namespace bnbx::sycl_words

#define threadIdx (::bnbx::sycl_words::dim3_of(::bnbx::sycl_words::item().get_local_id()))
#define blockIdx \
  (::bnbx::sycl_words::dim3_of(::bnbx::sycl_words::item().get_group().get_group_id()))
#define blockDim (::bnbx::sycl_words::dim3_of(::bnbx::sycl_words::item().get_local_range()))
#define gridDim (::bnbx::sycl_words::dim3_of(::bnbx::sycl_words::item().get_group_range()))

inline void __syncthreads() { sycl::group_barrier(bnbx::sycl_words::item().get_group()); }

// No templates: a pointer to shared memory is one of its own type, which would be deduced.
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
  return bnbx::sycl_words::Atomic<uint32_t>(*at).fetch_add(value);
}

inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return bnbx::sycl_words::Atomic<unsigned long long>(*at).fetch_add(value);
}

inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
  return bnbx::sycl_words::Atomic<uint32_t>(*at).fetch_max(value);
}

inline int atomicMax(int* at, int value) {
  return bnbx::sycl_words::Atomic<int>(*at).fetch_max(value);
}

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
