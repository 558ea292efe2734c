// device.h for SYCL. Two compilers read the kernels: the host's, for the launches, when bnbx is
// built; the device's, for one kernel at a time, when it is launched first (kernel_cache.h).
#pragma once

#include <string>
#include <tuple>

#include "sycl/language.h"

namespace bnbx::gpu {

static constexpr int kGroup = 32;
static constexpr bool kHasMma = false;

using Blocks = dim3;

template <class T>
T shuffle(T value, int lane) {
  return sycl::select_from_group(sycl::ext::oneapi::this_work_item::get_sub_group(), value, lane);
}

template <class T>
T shuffle_xor(T value, int mask) {
  return sycl::permute_group_by_xor(sycl::ext::oneapi::this_work_item::get_sub_group(), value,
                                    mask);
}

}  // namespace bnbx::gpu

#include "cuda/mma_by_shuffles.h"
#include "cuda/pack_by_bits.h"

namespace bnbx::gpu {

inline bool any(bool x) {
  return sycl::any_of_group(sycl::ext::oneapi::this_work_item::get_sub_group(), x);
}

inline void sync_group() {
  sycl::group_barrier(sycl::ext::oneapi::this_work_item::get_sub_group());
}

// The size of the memory is a constant of the compiled kernel: what its launch asks for.
template <class T>
T* dynamic_shared() {
#ifdef __SYCL_DEVICE_ONLY__
  alignas(16) __shared__ unsigned char bytes[BNBX_SHARED_BYTES];
  return reinterpret_cast<T*>(bytes);
#else
  return nullptr;
#endif
}

inline void copy_async_16(void* shared, const void* global) {
  struct alignas(16) Bytes {
    uint32_t words[4];
  };
  *static_cast<Bytes*>(shared) = *static_cast<const Bytes*>(global);
}

inline void commit_copies() {}

template <int kPending>
void wait_for_copies() {}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  mma_by_shuffles(d, a, b, type);
}

inline void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_by_shuffles(d, a, b, int8_t{});
}

inline void load_matrices(uint32_t (&words)[4], const void* row) {
  load_matrices_by_shuffles(words, row);
}

template <class T>
uint32_t pack(float low, float high, T type) {
  return pack_by_bits(low, high, type);
}

template <class T>
void unpack(uint32_t pair, float* low, float* high, T type) {
  unpack_by_bits(pair, low, high, type);
}

inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) { return dot4_by_bytes(a, b, sum); }

// What the drivers of Intel's GPUs take.
static constexpr int kArgumentBytes = 2048;

int64_t shared_limit();
int multiprocessors();

// A kernel as the device's compiler finds it: its name in a file of kernels/cuda.
struct Kernel {
  std::string source, name;
};

struct Argument {
  const void* data;
  size_t bytes;
  bool is_pointer;
};

void start(const Kernel& kernel, Blocks blocks, int threads, int64_t shared_bytes, Stream stream,
           const Argument* arguments, int count);

// The name that the host's compiler has for a template argument; both GCC and Clang write it so:
// "... [with auto kernel = bnbx::gpu::{anonymous}::count<float>]", "... [kernel = &...]".
template <auto kernel>
std::string name_of() {
  std::string name = __PRETTY_FUNCTION__;
  const std::string before = "kernel = ";
  name = name.substr(name.find(before) + before.size());
  name = name.substr(0, name.find_first_of(";]"));
  for (const std::string unnamed : {"{anonymous}::", "(anonymous namespace)::"}) {
    for (size_t at; (at = name.find(unnamed)) != std::string::npos;) name.erase(at, unnamed.size());
  }
  return name;
}

template <class... P, class... A>
void start_with(const Kernel& kernel, void (*)(P...), Blocks blocks, int threads,
                int64_t shared_bytes, Stream stream, A... arguments) {
  const std::tuple<P...> values(static_cast<P>(arguments)...);
  std::apply(
      [&](const auto&... value) {
        const Argument pointers[] = {{&value, sizeof(value), std::is_pointer_v<P>}...};
        start(kernel, blocks, threads, shared_bytes, stream, pointers, sizeof...(P));
      },
      values);
}

template <class... P>
struct Parameters {
  static constexpr int kBytes = (static_cast<int>(sizeof(P)) + ... + 0);
};

template <class... P>
Parameters<P...> parameters_of(void (*)(P...));

#ifdef BNBX_SYCL_SOURCE  // the file of kernels/cuda that the host's compiler reads
template <auto kernel, class... A>
void launch(Blocks blocks, int threads, int64_t shared_bytes, Stream stream, A... arguments) {
  static const Kernel named{BNBX_SYCL_SOURCE, name_of<kernel>()};
  start_with(named, kernel, blocks, threads, shared_bytes, stream, arguments...);
}
#else  // the device's compiler has no use for launches
template <auto kernel, class... A>
void launch(Blocks, int, int64_t, Stream, A...) {}
#endif

}  // namespace bnbx::gpu
