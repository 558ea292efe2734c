// device.h for CUDA.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace bnbx::gpu {

static constexpr int kGroup = 32;
static constexpr bool kHasMma = true;
static constexpr unsigned kAllLanes = 0xffffffffu;

using Blocks = dim3;

template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}

template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

}  // namespace bnbx::gpu

#include "cuda/mma_by_shuffles.h"
#include "cuda/pack_by_bits.h"

namespace bnbx::gpu {

__device__ inline bool any(bool x) { return __any_sync(kAllLanes, x) != 0; }

__device__ inline void sync_group() { __syncwarp(); }

template <class T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

__device__ inline void copy_async_16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global));
#else
  *static_cast<int4*>(shared) = *static_cast<const int4*>(global);
#endif
}

__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}

template <int kPending>
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
#endif
}

__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#else
  mma_by_shuffles(d, a, b, float16{});
#endif
}

__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                           bfloat16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma_by_shuffles(d, a, b, bfloat16{});
#endif
}

__device__ inline void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
  for (int i = 0; i < 4; ++i) {  // a quarter of a: upper or lower rows, left or right half
    const int lower = i % 2 * 2;
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(d[lower]), "+r"(d[lower + 1])
        : "r"(a[i]), "r"(b[i / 2]));
  }
#else
  mma_by_shuffles(d, a, b, int8_t{});
#endif
}

__device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
#if __CUDA_ARCH__ >= 750
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from)
               : "memory");
#else
  load_matrices_by_shuffles(words, row);
#endif
}

__device__ inline uint32_t pack(float low, float high, [[maybe_unused]] float16 type) {
#if __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return pack_by_bits(low, high, type);
#endif
}

__device__ inline uint32_t pack(float low, float high, [[maybe_unused]] bfloat16 type) {
#if __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return pack_by_bits(low, high, type);
#endif
}

__device__ inline void unpack(uint32_t pair, float* low, float* high, float16) {
  asm("{\n.reg .b16 first, second;\n"
      "mov.b32 {first, second}, %2;\ncvt.f32.f16 %0, first;\ncvt.f32.f16 %1, second;\n}"
      : "=f"(*low), "=f"(*high)
      : "r"(pair));
}

__device__ inline void unpack(uint32_t pair, float* low, float* high, bfloat16) {
  *low = bits_float(pair << 16);
  *high = bits_float(pair & 0xffff0000u);
}

__device__ inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
#if __CUDA_ARCH__ >= 610
  return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), sum);
#else
  return dot4_by_bytes(a, b, sum);
#endif
}

// Names what failed and, where the machine or its driver is the reason, what to do.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::string message = std::string(what) + ": CUDA error " + std::to_string(error) + " (" +
                        cudaGetErrorName(error) + "): " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver) {
    message += ". The NVIDIA driver is missing or older than CUDA " +
               std::to_string(CUDART_VERSION / 1000) + ": install or update it.";
  } else if (error == cudaErrorNoDevice) {
    message += ". The driver sees no GPU: look at nvidia-smi and at CUDA_VISIBLE_DEVICES.";
  } else if (error == cudaErrorNoKernelImageForDevice) {
    message +=
        ". This build has no code for this GPU: build bnbx with "
        "-DCMAKE_CUDA_ARCHITECTURES=native.";
  } else if (error == cudaErrorUnsupportedPtxVersion) {
    message +=
        ". This GPU is newer than this build, and the driver older: update the driver, or build "
        "bnbx with -DCMAKE_CUDA_ARCHITECTURES=native.";
  }
  throw std::runtime_error(message);
}

// The compiler's, as the backend's name.
inline std::string toolkit() {
  return "cuda " + std::to_string(CUDART_VERSION / 1000) + "." +
         std::to_string(CUDART_VERSION % 1000 / 10);
}

// More than 4 KB need CUDA 12.1, a driver as new and sm_70: what every user of CUDA 13 has.
static constexpr int kArgumentBytes = CUDART_VERSION >= 13000 ? 32764 : 4096;

inline int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "asking for the number of multiprocessors");
  return count;
}

// Shared memory that a kernel gets without asking for more.
static constexpr int64_t kPlainShared = 48 << 10;

inline int64_t shared_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "asking for the size of shared memory");
  return bytes;
}

template <class... P, class... A>
void launch(void (*kernel)(P...), Blocks blocks, int threads, int64_t shared_bytes, Stream stream,
            A... arguments) {
  if (shared_bytes > kPlainShared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "asking for shared memory");
  }
  kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      static_cast<P>(arguments)...);
  check(cudaGetLastError(), "launching a kernel");
}

}  // namespace bnbx::gpu
