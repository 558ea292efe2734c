// What differs between a host and a device compiler.
#pragma once

#if defined(__HIPCC__)
#include <hip/hip_runtime.h>  // declares memcpy and the like for the device: before they are used
#endif

// Metal (and what stands for it in the tests): pointers and constants name the memory that they are
// in, and there is no double.
#if defined(__METAL_VERSION__)
#define BNBX_THREAD thread
#define BNBX_CONSTANT static constant constexpr
#define BNBX_CONSTANT_OF constant
#define BNBX_NO_DOUBLE
#else
#define BNBX_THREAD
#define BNBX_CONSTANT static constexpr
#define BNBX_CONSTANT_OF const
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

#if defined(__METAL_VERSION__)
namespace bnbx {

// What common/types.h and common/optimizers.h have in C++.
#define BNBX_BIT_CASTS
BNBX_INLINE uint32_t float_bits(float x) { return as_type<uint32_t>(x); }
BNBX_INLINE float bits_float(uint32_t bits) { return as_type<float>(bits); }
BNBX_INLINE float sqrt(float x) { return metal::precise::sqrt(x); }

#define BNBX_FLOAT16_INSTRUCTIONS
BNBX_INLINE float float16_to_float(uint16_t bits) { return float(as_type<half>(bits)); }
BNBX_INLINE uint16_t float_to_float16(float x) { return as_type<uint16_t>(half(x)); }

}  // namespace bnbx
#endif
