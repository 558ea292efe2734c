// LLM.int8(): the scales of codes and of sums of their products (Dettmers et al. 2022,
// section 2.1).
#pragma once

#include "common/codebooks.h"
#include "common/platform.h"

namespace bnbx {

BNBX_CONSTANT float kInt8Max = 127.0f;

// The factor that makes codes of a row (or column) whose largest magnitude is `absmax`. Rounded
// twice, as torch divides a number by a tensor, so that codes equal the reference's.
BNBX_INLINE float inverse_of_row(float absmax) {
  return 1.0f / (absmax > kSmallestRowAbsmax ? absmax : kSmallestRowAbsmax) * kInt8Max;
}

// What one unit of a code is worth.
BNBX_INLINE float unit_of_row(float absmax) { return absmax / kInt8Max; }

// What one unit of a sum of products of codes is worth: this times the absmax of both.
BNBX_CONSTANT float kInt8Scale = 1.0f / (kInt8Max * kInt8Max);

}  // namespace bnbx
