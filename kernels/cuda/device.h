// What the kernels of this folder use of a GPU, under the same names for CUDA, for HIP, for SYCL
// and for the emulator (kernels/simt), which runs them as C++ on a CPU.
//
// Lanes work together in groups of 32: a warp, or half of a wave of 64. So no kernel asks how wide
// the waves of the hardware are.
#pragma once

#include <cstdint>

#include "bnbx/kernels.h"
#include "common/types.h"

// Each of these defines, in the namespace bnbx::gpu, what stands below under "platform", and the
// words of the language: __global__, __device__, __shared__, __syncthreads(), threadIdx and so on.
#if defined(BNBX_SIMT)
#include "simt/platform.h"
#elif defined(BNBX_SYCL)
#include "sycl/platform.h"
#elif defined(__HIPCC__)
#include "hip/platform.h"
#else
#include "cuda/platform.h"
#endif

namespace bnbx::gpu {

// Platform:
//
// constexpr int kGroup = 32;
//     Lanes that work together.
// constexpr bool kHasMma
//     Whether mma is meant to be fast, as one instruction on all but old devices.
// template <class T> T shuffle(T value, int lane);
// template <class T> T shuffle_xor(T value, int mask);
//     The value of another lane of the group. T has 4 or 8 bytes. As in all that a group does
//     together, all 32 lanes must call, at one line of the source: no lane may have ended, and a
//     block in which groups do something together has a multiple of 32 threads.
// bool any(bool x);
//     Whether x is true in a lane of the group.
// void sync_group();
//     Waits for the lanes of the group, and makes what they have written visible to each other.
// template <class T> T* dynamic_shared();
//     The shared memory that the launch has asked for, aligned to 16 bytes.
// void copy_async_16(void* shared, const void* global);
// void commit_copies();
// template <int kPending> void wait_for_copies();
//     16 bytes from global to shared memory, both aligned to 16 bytes, by hardware that works on
//     its own. Copies since the last commit make a batch; waiting lets kPending batches be under
//     way. Another thread sees the bytes after a __syncthreads() that follows the wait. A thread
//     does not end before it has waited for all its copies.
// void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16);
// void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16);
//     d (16 x 8) += a (16 x 16) b (16 x 8), the elements dealt to the lanes of a group as those of
//     mma.sync.m16n8k16. With r = l / 4 and c = l % 4 * 2, lane l has
//     d: (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1);
//     a: (r, c), (r + 8, c), (r, c + 8), (r + 8, c + 8), each with the next column above it;
//     b: (c, r), (c + 8, r), each with the next row above it, in the upper 16 bits.
// void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
//     d (16 x 8) += a (16 x 32) b (32 x 8) of int8, as mma.sync.m16n8k32 deals them: the same with
//     four elements to a register, c = l % 4 * 4 in a and b, and halves of 16.
// void load_matrices(uint32_t (&words)[4], const void* row);
//     Four matrices of 8 rows of 16 bytes, from shared memory, as mma takes its a and b: each lane
//     names a row, lane l row l % 8 of matrix l / 8, and gets of each matrix the 4 bytes at l % 4 *
//     4 of row l / 4.
// uint32_t pack(float low, float high, float16);
// uint32_t pack(float low, float high, bfloat16);
// void unpack(uint32_t pair, float* low, float* high, float16);
// void unpack(uint32_t pair, float* low, float* high, bfloat16);
//     Two elements in a register, rounded as from_float() rounds, and back.
// int32_t dot4(uint32_t a, uint32_t b, int32_t sum);
//     sum plus the products of the four int8 in a with those in b.
// int64_t shared_limit();
//     The most bytes of shared memory that a launch on the current device may ask for.
// template <class... P, class... A>
// void launch(void (*kernel)(P...), Blocks blocks, int threads, int64_t shared_bytes,
//             Stream stream, A... arguments);
//     Queues the kernel; throws std::runtime_error if that fails. Blocks is dim3: x may be up to
//     2^31 - 1, y and z up to 65535. Kernels are launched as launch<kernel>(blocks, ...), which a
//     platform that has no pointers to kernels defines in its place.
// constexpr int kArgumentBytes
//     A kernel's arguments may have this many bytes together.
// int multiprocessors();
//     Of the current device: what a grid that stays on it is measured by.

// Elements as vectors of 16 bytes or fewer, which one instruction loads or stores.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

template <class T, int kCount>
__device__ inline Vector<T, kCount> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, kCount>*>(from);
}

template <class T, int kCount>
__device__ inline void store_vector(T* to, const Vector<T, kCount>& vector) {
  *reinterpret_cast<Vector<T, kCount>*>(to) = vector;
}

BNBX_HD inline bool is_aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

__device__ inline float group_max(float x) {
  for (int mask = kGroup / 2; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

__device__ inline uint32_t group_max(uint32_t x) {
  for (int mask = kGroup / 2; mask > 0; mask /= 2) x = max(x, shuffle_xor(x, mask));
  return x;
}

template <class T>
__device__ inline T group_sum(T x) {
  for (int mask = kGroup / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// How a function takes a table, one of a kernel's arguments, that it indexes at run time. For AMD's
// GPUs that has to be a copy: the compiler would put all arguments into memory of each thread.
#if defined(__HIPCC__)
template <class T>
using Indexed = T;
#else
template <class T>
using Indexed = const T&;
#endif

inline int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

#if !defined(BNBX_SYCL)
template <auto kernel, class... A>
void launch(Blocks blocks, int threads, int64_t shared_bytes, Stream stream, A... arguments) {
  launch(kernel, blocks, threads, shared_bytes, stream, arguments...);
}
#endif

// Calls `work` with a value of the element type.
template <class Work>
void with_type(DType dtype, Work&& work) {
  switch (dtype) {
    case DType::kFloat32: return work(float{});
    case DType::kFloat16: return work(float16{});
    case DType::kBFloat16: return work(bfloat16{});
  }
}

}  // namespace bnbx::gpu
