// Walking over memory a vector at a time, with the last, partial vector staged through a buffer.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bnbx/kernels.h"
#include "common/types.h"

namespace bnbx::cpu {

// Calls f with a value of the element type that `dtype` names.
template <class Function>
static inline void with_type(DType dtype, Function&& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat16: return f(float16{});
    case DType::kBFloat16: return f(bfloat16{});
  }
}

// Asks for a cache line: several rows read at a time are not the one stream of memory that a
// processor foresees.
static inline void prefetch(const void* p) {
#ifdef __GNUC__
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

struct Full {};  // all lanes of a vector are in use
struct Partial {
  int lanes;  // only the first ones are
};

// Calls body(offset, Full or Partial) for every vector of n elements.
template <class V, class Body>
static inline void sweep(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) body(i, Full{});
  if (i < n) body(i, Partial{static_cast<int>(n - i)});
}

// Loads: lanes beyond a partial vector are zero.
template <class V, class T>
static inline typename V::F32 load(const T* p, Full) {
  return V::load(p);
}
template <class V, class T>
static inline typename V::F32 load(const T* p, Partial part) {
  T staged[V::kWidth] = {};
  memcpy(staged, p, part.lanes * sizeof(T));
  return V::load(staged);
}

template <class V>
static inline typename V::F32 from_int32(const int32_t* p, Full) {
  return V::from_int32(p);
}
template <class V>
static inline typename V::F32 from_int32(const int32_t* p, Partial part) {
  int32_t staged[V::kWidth] = {};
  memcpy(staged, p, part.lanes * sizeof(int32_t));
  return V::from_int32(staged);
}

template <class V>
static inline typename V::I32 load_bytes(const uint8_t* p, Full) {
  return V::load_bytes(p);
}
template <class V>
static inline typename V::I32 load_bytes(const uint8_t* p, Partial part) {
  uint8_t staged[V::kWidth] = {};
  memcpy(staged, p, part.lanes);
  return V::load_bytes(staged);
}

template <class V>
static inline typename V::I32 load_nibbles(const uint8_t* p, Full) {
  return V::load_nibbles(p);
}
template <class V>
static inline typename V::I32 load_nibbles(const uint8_t* p, Partial part) {
  uint8_t staged[V::kWidth / 2] = {};
  memcpy(staged, p, (part.lanes + 1) / 2);
  return V::load_nibbles(staged);
}

// Stores: lanes beyond a partial vector are not written.
template <class V, class T>
static inline void store(T* p, typename V::F32 a, Full) {
  V::store(p, a);
}
template <class V, class T>
static inline void store(T* p, typename V::F32 a, Partial part) {
  T staged[V::kWidth];
  V::store(staged, a);
  memcpy(p, staged, part.lanes * sizeof(T));
}

template <class V>
static inline void store_bytes(uint8_t* p, typename V::I32 a, Full) {
  V::store_bytes(p, a);
}
template <class V>
static inline void store_bytes(uint8_t* p, typename V::I32 a, Partial part) {
  uint8_t staged[V::kWidth];
  V::store_bytes(staged, a);
  memcpy(p, staged, part.lanes);
}

template <class V>
static inline void store_rounded(int8_t* p, typename V::F32 a, Full) {
  V::store_rounded(p, a);
}
template <class V>
static inline void store_rounded(int8_t* p, typename V::F32 a, Partial part) {
  int8_t staged[V::kWidth];
  V::store_rounded(staged, a);
  memcpy(p, staged, part.lanes);
}

template <class V>
static inline void store_nibbles(uint8_t* p, typename V::I32 a, Full) {
  V::store_nibbles(p, a);
}
template <class V>
static inline void store_nibbles(uint8_t* p, typename V::I32 a, Partial part) {
  uint8_t staged[V::kWidth / 2];
  V::store_nibbles(staged, a);
  memcpy(p, staged, (part.lanes + 1) / 2);
}

// The largest of some magnitudes, given by their bits; NaN if one of them is NaN or infinite.
template <class V>
static inline float finite_magnitude(typename V::I32 magnitudes) {
  const uint32_t bits = static_cast<uint32_t>(V::max_lane(magnitudes));
  return bits_float(bits >= 0x7f800000u ? 0x7fc00000u : bits);
}

// The largest magnitude of n elements; NaN if one of them is NaN or infinite.
template <class V, class T>
static inline float finite_absmax(const T* p, int64_t n) {
  typename V::I32 best(0);
  sweep<V>(n,
           [&](int64_t i, auto lanes) { best = V::max(best, V::abs_bits(load<V>(p + i, lanes))); });
  return finite_magnitude<V>(best);
}

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace bnbx::cpu
