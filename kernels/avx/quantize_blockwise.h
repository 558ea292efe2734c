// quantize_blockwise: absmax of each block, then the nearest of 256 ascending entries.
#pragma once

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "common/codebooks.h"

namespace bnbx::cpu {

// Writes nearest(A[i] * factor), an index below 256.
template <class V, class T, class Nearest>
static inline void encode_with(const T* A, float factor, int64_t n, uint8_t* out,
                               Nearest&& nearest) {
  const typename V::F32 scale(factor);
  const auto index = [&](int64_t i) { return nearest(V::load(A + i) * scale); };
  constexpr int64_t kWidth = V::kWidth;
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    V::store_bytes(out + i, index(i), index(i + kWidth), index(i + 2 * kWidth),
                   index(i + 3 * kWidth));
  }
  sweep<V>(n - i, [&](int64_t j, auto lanes) {
    store_bytes<V>(out + i + j, nearest(load<V>(A + i + j, lanes) * scale), lanes);
  });
}

// Finds the nearest entry for values in [-1, 1].
//
// The top 16 bits of a float (sign, exponent, seven bits of fraction) select a cell. In the
// codebooks of the field a cell holds at most one boundary between entries, so one table entry says
// it all: the index below the boundary, and the boundary's low 16 bits to compare the value's with.
// Where a cell holds more (small floating-point formats), the table gives the first candidate and
// the boundaries are compared with one by one.
template <class V>
class Encoder8 {
 public:
  Encoder8() = default;
  explicit Encoder8(const float* code) { set(code); }

  void set(const float* code) {
    for (int i = 0; i < 255; ++i) bounds_[i] = (code[i] + code[i + 1]) / 2.0f;
    bounds_[255] = 3.0e38f;
    int cell = 0;
    for (int i = 0; i < 255;) {
      const int first = i, at = cell_of(bounds_[i]);
      for (; cell < at; ++cell) cells_[cell] = entry(first, 0xffff);
      while (i < 255 && cell_of(bounds_[i]) == at) ++i;
      const int inside = i - first;
      if (inside > steps_) steps_ = inside;
      // A cell at the ends or around zero holds more than one pattern of the top bits.
      const bool merged = at % kCells == 0 || at % kCells == kCells - 1;
      if (inside > 1 || merged) one_boundary_ = false;
      cells_[cell++] = entry(first, order(float_bits(bounds_[first])) & 0xffffu);
    }
    for (; cell < 2 * kCells; ++cell) cells_[cell] = entry(255, 0xffff);
  }

  // Writes the index of the nearest entry for each A[i] * factor.
  template <class T>
  BNBX_MEMBER void encode(const T* A, float factor, int64_t n, uint8_t* out) const {
    encode_with<V>(A, factor, n, out, [this](typename V::F32 x) { return nearest(x); });
  }

 private:
  BNBX_MEMBER typename V::I32 nearest(typename V::F32 x) const {
    using I32 = typename V::I32;
    const I32 bits = V::bits(x);
    const I32 sign = V::template shift_right<31>(bits);
    const I32 top = V::template shift_right<16>(V::abs_bits(x)) + I32(-kSmallest);
    const I32 cell = (V::min(V::max(top, I32(0)), I32(kCells - 1)) ^ sign) + I32(kCells);
    const I32 found = V::gather(cells_, cell);
    I32 index = V::template shift_right<16>(found);
    if (one_boundary_) {
      const I32 low = I32(0xffff);
      return index + V::where_greater((bits ^ sign) & low, found & low, 1);
    }
    for (int i = 0; i < steps_; ++i) {
      index = index + V::where_greater(x, V::gather(bounds_, index), 1);
    }
    return index;
  }

  static constexpr int kSmallest = (127 - 24) << 7;  // 2^-24; smaller magnitudes share its cell
  static constexpr int kCells = (24 << 7) + 1;       // of one sign, up to 1.0

  // Bits whose lower 16 ascend with the value, for negative values too.
  static uint32_t order(uint32_t bits) { return (bits & 0x80000000u) != 0 ? ~bits : bits; }

  // Cells ascend: negative values first, by falling magnitude, then positive ones.
  static int cell_of(float x) {
    const int top = static_cast<int>(float_bits(x) >> 16 & 0x7fffu) - kSmallest;
    const int magnitude = top < 0 ? 0 : top < kCells ? top : kCells - 1;
    return x < 0.0f ? kCells - 1 - magnitude : kCells + magnitude;
  }

  static int32_t entry(int index, uint32_t low) {
    return static_cast<int32_t>(static_cast<uint32_t>(index) << 16 | low);
  }

  float bounds_[256];
  int32_t cells_[2 * kCells];  // index of the first candidate, then the boundary's low bits
  int steps_ = 0;              // most boundaries in a cell
  bool one_boundary_ = true;
};

// Quantizes one block, of which finite_absmax is known.
template <class V, class T, class Encoder>
static inline void quantize_blockwise_block(const T* A, float absmax, int64_t n,
                                            const Encoder& encoder, uint8_t* out) {
  if (absmax != absmax) {  // decodes to NaN whatever the codes are
    memset(out, 0, n);
    return;
  }
  encoder.encode(A, 1.0f / larger(absmax, kSmallestAbsmax), n, out);
}

template <class V>
void quantize_blockwise(const void* A, DType dtype, int64_t n, const float* code, int64_t blocksize,
                        uint8_t* out, float* absmax, Stream) {
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    const Encoder8<V> encode(code);
    parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
      for (; b < end; ++b) {
        const int64_t start = b * blocksize;
        const int64_t count = smaller(blocksize, n - start);
        absmax[b] = finite_absmax<V>(values + start, count);
        quantize_blockwise_block<V>(values + start, absmax[b], count, encode, out + start);
      }
    });
  });
}

}  // namespace bnbx::cpu
