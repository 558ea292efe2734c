// The 4-bit code tables, and the boundaries between neighbouring entries that encoding compares
// with.
#pragma once

#include <cstdint>

#include "common/platform.h"

namespace bnbx {

// A 4-bit data type. Encoding looks for the position of a value among the sorted entries;
// `code_at` turns that position into the code, which for fp4 is the bit pattern.
struct Codebook4 {
  float values[16];     // by code
  uint8_t code_at[16];  // code of the i-th smallest entry
  float bounds[15];     // half-way between the i-th and the (i+1)-th smallest
};

// The boundary above the i-th smallest entry.
BNBX_INLINE constexpr float boundary(BNBX_CONSTANT_OF Codebook4& book, int i) {
  return (book.values[book.code_at[i]] + book.values[book.code_at[i + 1]]) / 2.0f;
}

// Metal cannot initialize a constant by a function: there, boundaries are computed when they are
// asked for.
#if defined(__METAL_VERSION__)
#define BNBX_WITH_BOUNDS(...) __VA_ARGS__
#else
#define BNBX_WITH_BOUNDS(...) with_bounds(__VA_ARGS__)

BNBX_INLINE constexpr Codebook4 with_bounds(Codebook4 book) {
  for (int i = 0; i < 15; ++i) book.bounds[i] = boundary(book, i);
  return book;
}

// The type whose values ascend with the code: `map` has 16 of them.
BNBX_INLINE Codebook4 ascending_codebook(const float* map) {
  Codebook4 book{};
  for (int i = 0; i < 16; ++i) {
    book.values[i] = map[i];
    book.code_at[i] = static_cast<uint8_t>(i);
  }
  return with_bounds(book);
}
#endif

// Dettmers et al. 2023, QLoRA, appendix E.
BNBX_CONSTANT Codebook4 kNF4 = BNBX_WITH_BOUNDS({
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
     -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
     0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
     0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {},
});

// Sign, two exponent bits, one mantissa bit. Codes 0 and 8 are both zero.
BNBX_CONSTANT Codebook4 kFP4 = BNBX_WITH_BOUNDS({
    {0.0f, 0.0625f / 12, 8.0f / 12, 1.0f, 4.0f / 12, 6.0f / 12, 2.0f / 12, 3.0f / 12, 0.0f,
     -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12},
    {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3},
    {},
});

// Scales below these are not inverted, so that a block of denormals stays finite.
BNBX_CONSTANT float kSmallestAbsmax = 1e-38f;
BNBX_CONSTANT float kSmallestRowAbsmax = 1e-36f;

// Elements that share one scale in an 8-bit optimizer state, and in a 4-bit one.
BNBX_CONSTANT int64_t kOptimizerBlocksize = 256;
BNBX_CONSTANT int64_t kOptimizerBlocksize4 = 128;

}  // namespace bnbx
