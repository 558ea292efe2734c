// Parameters of bfloat16 that keep what plain rounding loses: at random, or in a second bfloat16.
#pragma once

#include <cstdint>

#include "avx/sweep.h"
#include "common/rounding.h"
#include "common/types.h"

namespace bnbx::cpu {

// The upper 16 bits of a float, a bfloat16: rounded towards zero.
template <class V>
static inline typename V::F32 truncated_bf16(typename V::I32 bits) {
  return V::from_bits(bits & typename V::I32(static_cast<int32_t>(0xffff0000u)));
}

template <class V>
static inline typename V::F32 nearest_bf16(typename V::F32 x) {
  bfloat16 staged[V::kWidth];
  V::store(staged, x);
  return V::load(staged);
}

// Rounds up or down with the probability that makes the mean exact: 16 random bits are added to the
// 16 bits that are cut off. Finite values stay finite: what is above the largest becomes it.
template <class V>
static inline void store_stochastically(const float* values, int64_t n, RandomBits random,
                                        int64_t first_index, bfloat16* p) {
  using I32 = typename V::I32;
  alignas(64) float lanes_as_bits[V::kWidth];
  for (int i = 0; i < V::kWidth; ++i) lanes_as_bits[i] = bits_float(static_cast<uint32_t>(i));
  const I32 lane_numbers = V::bits(V::load(lanes_as_bits));
  const I32 largest(0x7f7f0000);
  sweep<V>(n, [&](int64_t i, auto lanes) {
    const typename V::F32 x = load<V>(values + i, lanes);
    const I32 index = lane_numbers + I32(static_cast<int32_t>(first_index + i));
    const I32 noise = random(index) & V::where_greater(largest, V::abs_bits(x), 0xffff);
    store<V>(p + i, truncated_bf16<V>(V::bits(x) + noise), lanes);
  });
}

template <class V>
static inline void load_compensated(const bfloat16* p, const bfloat16* compensation, int64_t n,
                                    float* values) {
  sweep<V>(n, [&](int64_t i, auto lanes) {
    V::store(values + i, load<V>(p + i, lanes) + load<V>(compensation + i, lanes));
  });
}

// Kahan 1965: the parameter is p + compensation, p the nearest bfloat16 to that sum. Where rounding
// the rest would take the sum over a tie, so that p is no longer the nearest, it is cut off
// instead.
template <class V>
static inline void store_compensated(const float* values, int64_t n, bfloat16* p,
                                     bfloat16* compensation) {
  sweep<V>(n, [&](int64_t i, auto lanes) {
    const auto x = load<V>(values + i, lanes);
    const auto kept = nearest_bf16<V>(x);
    const auto rest = x - kept;
    const auto rounded = nearest_bf16<V>(rest);
    const auto moved = nearest_bf16<V>(kept + rounded) - kept;
    store<V>(p + i, kept, lanes);
    store<V>(compensation + i, V::where_zero(moved, rounded, truncated_bf16<V>(V::bits(rest))),
             lanes);
  });
}

}  // namespace bnbx::cpu
