// quantize_blockwise: absmax of each block, then the nearest of 256 ascending entries.
#pragma once

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "common/codebooks.h"

namespace bnbx::cpu {

// Finds the nearest entry for values in [-1, 1]. The top bits of a value (sign, exponent, six bits
// of fraction) select a cell, whose first candidate is known beforehand; the boundaries that fall
// into a cell are then compared with, at most `steps_` of them.
template <class V>
class Encoder8 {
 public:
  explicit Encoder8(const float* code) {
    for (int i = 0; i < 255; ++i) bounds_[i] = (code[i] + code[i + 1]) / 2.0f;
    bounds_[255] = 3.0e38f;
    steps_ = mark_cells();
  }

  typename V::I32 operator()(typename V::F32 x) const {
    using I32 = typename V::I32;
    I32 index = V::gather(first_, cell(V::bits(x), V::abs_bits(x)));
    for (int i = 0; i < steps_; ++i) {
      index = index + V::where_greater(x, V::gather(bounds_, index), 1);
    }
    return index;
  }

 private:
  static constexpr int kShift = 17;                  // 23 bits of fraction, 6 kept
  static constexpr int kSmallest = (127 - 24) << 6;  // 2^-24; smaller magnitudes share its cell
  static constexpr int kCells = (24 << 6) + 1;       // of one sign, up to 1.0

  static typename V::I32 cell(typename V::I32 bits, typename V::I32 magnitude) {
    using I32 = typename V::I32;
    const I32 top = V::template shift_right<kShift>(magnitude) + I32(-kSmallest);
    const I32 positive = V::min(V::max(top, I32(0)), I32(kCells - 1));
    // Negative values: the same cells, counted downwards from the middle.
    return V::where_negative(bits, I32(kCells - 1) - positive, positive + I32(kCells));
  }

  // Lower edge of a cell.
  static float edge(int cell) {
    if (cell == 0) return -3.0e38f;
    if (cell < kCells) {  // negative; the edge is the larger magnitude, which is not in the cell
      return -bits_float(static_cast<uint32_t>(kCells - cell + kSmallest) << kShift);
    }
    if (cell == kCells) return 0.0f;
    return bits_float(static_cast<uint32_t>(cell - kCells + kSmallest) << kShift);
  }

  // Sets the first candidate of each cell; returns the largest number of boundaries in one.
  int mark_cells() {
    int index = 0, most = 0, previous = 0;
    for (int c = 0; c < 2 * kCells; ++c) {
      while (index < 255 && bounds_[index] < edge(c)) ++index;
      first_[c] = static_cast<uint8_t>(index);
      if (c > 0 && index - previous > most) most = index - previous;
      previous = index;
    }
    return most > 255 - previous ? most : 255 - previous;
  }

  float bounds_[256];
  uint8_t first_[2 * kCells + 3] = {};
  int steps_;
};

// Quantizes one block; returns its absmax.
template <class V, class T>
static inline float quantize_blockwise_block(const T* A, int64_t n, const Encoder8<V>& encode,
                                             uint8_t* out) {
  const float absmax = finite_absmax<V>(A, n);
  if (absmax != absmax) {  // decodes to NaN whatever the codes are
    memset(out, 0, n);
    return absmax;
  }
  const typename V::F32 inverse(1.0f / larger(absmax, kSmallestAbsmax));
  sweep<V>(n, [&](int64_t i, auto lanes) {
    store_bytes<V>(out + i, encode(load<V>(A + i, lanes) * inverse), lanes);
  });
  return absmax;
}

template <class V>
void quantize_blockwise(const void* A, DType dtype, int64_t n, const float* code,
                        int64_t blocksize, uint8_t* out, float* absmax, Stream) {
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    const Encoder8<V> encode(code);
    parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
      for (; b < end; ++b) {
        const int64_t start = b * blocksize;
        const int64_t count = smaller(blocksize, n - start);
        absmax[b] = quantize_blockwise_block<V>(values + start, count, encode, out + start);
      }
    });
  });
}

}  // namespace bnbx::cpu
