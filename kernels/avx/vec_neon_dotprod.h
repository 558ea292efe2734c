// The vocabulary of NEON with the dot product of Armv8.2: sixteen products of int8 in one
// instruction.
#pragma once

#include "avx/vec_neon.h"

namespace bnbx {
namespace neon {

template <class Isa>
struct DotVec : Vec<Isa> {
  static constexpr int kInt8Width = 32;
  struct Int8 {
    int8x16_t low, high;
  };
  static Int8 load_int8(const int8_t* p) { return {vld1q_s8(p), vld1q_s8(p + 16)}; }
  static I32 dot(I32 sum, Int8 a, Int8 b) {
    return {vdotq_s32(sum.low, a.low, b.low), vdotq_s32(sum.high, a.high, b.high)};
  }
};

}  // namespace neon
}  // namespace bnbx
