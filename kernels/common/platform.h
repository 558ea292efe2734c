// What differs between a host and a device compiler.
#pragma once

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
