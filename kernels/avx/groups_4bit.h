// Groups of 64 consecutive codes (32 bytes), which the kernels for particular instruction sets
// decode at a time, and parts of a product with many rows.
#pragma once

#include "avx/dequantize_4bit.h"
#include "avx/product_4bit.h"
#include "avx/sweep.h"

namespace bnbx::cpu {

static constexpr int64_t kGroup = 64;  // codes

// Whether every group of 64 codes, counted from the start of its row, lies in one block.
static inline bool groups_are_regular(const Product4& p) {
  return p.K % kGroup == 0 && p.scales.blocksize % kGroup == 0;
}

// Scales of `count` consecutive groups, the first of which is `group` (in units of 64 codes).
template <class V>
static inline void group_scales(const BlockScales& scales, int64_t group, int64_t count,
                                float* out) {
  const int64_t groups_per_block = scales.blocksize / kGroup;
  if (groups_per_block == 1 && scales.absmax_8bit == nullptr) {
    memcpy(out, scales.absmax + group, count * sizeof(float));
    return;
  }
  if (groups_per_block == 1) {
    for (int64_t i = 0; i < count;) {
      const int64_t outer = (group + i) / scales.absmax_blocksize;
      const int64_t stop = smaller(count, (outer + 1) * scales.absmax_blocksize - group);
      const typename V::F32 absmax(scales.absmax[outer]);
      const typename V::F32 offset(*scales.absmax_offset);
      sweep<V>(stop - i, [&](int64_t k, auto lanes) {
        const auto codes = load_bytes<V>(scales.absmax_8bit + group + i + k, lanes);
        store<V>(out + i + k, V::gather(scales.absmax_code, codes) * absmax + offset, lanes);
      });
      i = stop;
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = scale_of(scales, (group + i) / groups_per_block);
}

// Calls f with the product in parts of some hundred rows of A, whose sums fit the second-level
// cache. Rows of A have `depth` values of 16 bits, rows of the output `width`.
template <class Function>
static inline void for_parts_of_rows(const Product4& p, int64_t depth, int64_t width,
                                     Function&& f) {
  constexpr int64_t kMost = 512, kMultiple = 32;
  const int64_t parts = ceil_div(p.M, kMost);
  const int64_t rows = ceil_div(p.M, parts * kMultiple) * kMultiple;
  for (int64_t m = 0; m < p.M; m += rows) {
    Product4 part = p;
    part.A = static_cast<const uint16_t*>(p.A) + m * depth;
    part.out = static_cast<uint16_t*>(p.out) + m * width;
    part.M = smaller(rows, p.M - m);
    f(part);
  }
}

}  // namespace bnbx::cpu
