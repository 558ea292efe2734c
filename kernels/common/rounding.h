// Stochastic rounding to bfloat16: the random numbers, the same on every backend.
#pragma once

#include <cstdint>

#include "common/platform.h"

namespace bnbx {

template <int kShift>
BNBX_INLINE uint32_t shift_right_logical(uint32_t x) {
  return x >> kShift;
}

// 32 random bits for each element of a parameter in one step. They are a function of the seed, the
// step and the element's number alone, so that threads, vectors and resumed runs change nothing.
//
// Seed and step make two keys with the finalizer of SplitMix64 (Steele, Lea & Flood 2014); the keys
// and the number make the bits with two rounds of multiplication and xor-shift, a permutation of
// the 32-bit numbers (constants: Wellons 2018, "Prospecting for Hash Functions", lowbias32).
struct RandomBits {
  uint32_t first_key, second_key;

  BNBX_MEMBER RandomBits(uint64_t seed, int64_t step) {
    uint64_t z = seed + static_cast<uint64_t>(step) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    first_key = static_cast<uint32_t>(z);
    second_key = static_cast<uint32_t>(z >> 32);
  }

  // U is uint32_t or a vector of 32-bit integers; `index` is the element's number modulo 2^32.
  template <class U>
  BNBX_MEMBER U operator()(U index) const {
    U x = index ^ word<U>(first_key);
    x = (x ^ shift_right_logical<16>(x)) * word<U>(0x7feb352du);
    x = (x ^ shift_right_logical<15>(x)) + word<U>(second_key);
    x = x * word<U>(0x846ca68bu);
    return x ^ shift_right_logical<16>(x);
  }

 private:
  template <class U>
  BNBX_MEMBER static U word(uint32_t bits) {
    return U(static_cast<int32_t>(bits));
  }
};

}  // namespace bnbx
