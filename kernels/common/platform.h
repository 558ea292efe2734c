// What differs between a host and a device compiler.
#pragma once

#if defined(__HIPCC__)
#include <hip/hip_runtime.h>  // declares memcpy and the like for the device: before they are used
#endif

#if defined(__CUDACC__) || defined(__HIPCC__)
#define BNBX_HD __host__ __device__
#else
#define BNBX_HD
#endif

// For member functions, which cannot be static: never a copy of their own (see below).
#if defined(_MSC_VER) && !defined(__clang__)
#define BNBX_MEMBER BNBX_HD __forceinline
#else
#define BNBX_MEMBER BNBX_HD inline __attribute__((always_inline))
#endif

// Internal linkage, always: the same header is compiled with the flags of several instruction sets,
// and a shared inline function would be kept once, perhaps in the copy that the machine cannot run.
#define BNBX_INLINE BNBX_HD static inline

// Conversions for which the device has an instruction: what common/types.h does in a dozen.
#if defined(__CUDA_ARCH__)
#include <cstdint>

#define BNBX_FLOAT16_INSTRUCTIONS
__device__ static inline float float16_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ static inline uint16_t float_to_float16(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#if __CUDA_ARCH__ >= 800
#define BNBX_BFLOAT16_INSTRUCTION
__device__ static inline uint16_t float_to_bfloat16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

#elif defined(__HIP_DEVICE_COMPILE__)
#define BNBX_FLOAT16_INSTRUCTIONS
__device__ static inline float float16_to_float(uint16_t bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
}
__device__ static inline uint16_t float_to_float16(float x) {
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(x));
}
#endif
