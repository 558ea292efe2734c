// device.h for HIP. A group is a wave of 32, or half of a wave of 64, which runs in lockstep.
#pragma once

#include <hip/hip_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "hip/cuda_names.h"

namespace bnbx::gpu {

static constexpr int kGroup = 32;
static constexpr bool kHasMma = false;

using Blocks = dim3;

template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl(value, lane, kGroup);
}

template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor(value, mask, kGroup);
}

}  // namespace bnbx::gpu

#include "cuda/mma_by_shuffles.h"
#include "cuda/pack_by_bits.h"

namespace bnbx::gpu {

__device__ inline bool any(bool x) {
  // A bit for each lane of the wave. Lanes that are elsewhere have none.
  const uint64_t found = __ballot(x);
  return static_cast<uint32_t>(found >> (__lane_id() / kGroup * kGroup)) != 0;
}

__device__ inline void sync_group() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

template <class T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// The hardware has no such copies: they are done when they are asked for.
__device__ inline void copy_async_16(void* shared, const void* global) {
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
}
__device__ inline void commit_copies() {}
template <int kPending>
__device__ inline void wait_for_copies() {}

// The matrix instructions multiply 16 or 32 columns at a time, and on waves of 64 with one operand
// for both groups: with the 8 columns of mma they would idle. Large products go through torch.
template <class T>
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  mma_by_shuffles(d, a, b, type);
}

__device__ inline void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_by_shuffles(d, a, b, int8_t{});
}

__device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
  load_matrices_by_shuffles(words, row);
}

template <class T>
__device__ inline uint32_t pack(float low, float high, T type) {
  return pack_by_bits(low, high, type);
}

template <class T>
__device__ inline void unpack(uint32_t pair, float* low, float* high, T type) {
  unpack_by_bits(pair, low, high, type);
}

__device__ inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
#if defined(__GFX11__) || defined(__GFX12__)
  return __builtin_amdgcn_sudot4(true, a, true, b, sum, false);
#elif defined(__gfx906__) || defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx942__) || \
    defined(__gfx950__) || defined(__gfx1030__)
  return __builtin_amdgcn_sdot4(a, b, sum, false);
#else
  return dot4_by_bytes(a, b, sum);
#endif
}

// Names what failed and, where the machine or its driver is the reason, what to do.
inline void check(hipError_t error, const char* what) {
  if (error == hipSuccess) return;
  std::string message = std::string(what) + ": HIP error " + std::to_string(error) + " (" +
                        hipGetErrorName(error) + "): " + hipGetErrorString(error);
  // What a call says where there is no GPU depends on the call and on the release.
  int devices = 0;
  if (hipGetDeviceCount(&devices) != hipSuccess || devices == 0) {
    message +=
        ". The driver sees no GPU: look at rocminfo and at HIP_VISIBLE_DEVICES; whoever uses a GPU "
        "must be in the groups render and video.";
  } else if (error == hipErrorNoBinaryForGpu || error == hipErrorInvalidDeviceFunction) {
    message +=
        ". This build has no code for this GPU: build bnbx with -DCMAKE_HIP_ARCHITECTURES=gfx..., "
        "the name of the GPU in rocminfo.";
  }
  throw std::runtime_error(message);
}

// The compiler's, as the backend's name.
inline std::string toolkit() {
  return "hip " + std::to_string(HIP_VERSION_MAJOR) + "." + std::to_string(HIP_VERSION_MINOR);
}

// What a queue of the hardware takes at least, and as much as CUDA.
static constexpr int kArgumentBytes = 4096;

inline int attribute(hipDeviceAttribute_t name, const char* what) {
  int device = 0, value = 0;
  check(hipGetDevice(&device), "asking for the current device");
  check(hipDeviceGetAttribute(&value, name, device), what);
  return value;
}

inline int multiprocessors() {
  return attribute(hipDeviceAttributeMultiprocessorCount, "asking for the compute units");
}

inline int64_t shared_limit() {
  return attribute(hipDeviceAttributeMaxSharedMemoryPerBlock, "asking for the size of the LDS");
}

template <class... P, class... A>
void launch(void (*kernel)(P...), Blocks blocks, int threads, int64_t shared_bytes, Stream stream,
            A... arguments) {
  if (int64_t{blocks.x} * threads > UINT32_MAX) {
    throw std::runtime_error(
        "launching a kernel: this tensor needs 2^32 threads or more, which AMD GPUs cannot count. "
        "Divide it.");
  }
  kernel<<<blocks, threads, shared_bytes, static_cast<hipStream_t>(stream)>>>(
      static_cast<P>(arguments)...);
  check(hipGetLastError(), "launching a kernel");
}

}  // namespace bnbx::gpu
