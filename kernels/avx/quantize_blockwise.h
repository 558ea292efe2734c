// quantize_blockwise: absmax of each block, then the nearest of 256 ascending entries.
#pragma once

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "common/codebooks.h"

namespace bnbx::cpu {

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
  explicit Encoder8(const float* code) {
    for (int i = 0; i < 255; ++i) bounds_[i] = (code[i] + code[i + 1]) / 2.0f;
    bounds_[255] = 3.0e38f;
    int index = 0;
    for (int cell = 0; cell < 2 * kCells; ++cell) {
      const int first = index;
      const float upper = upper_edge(cell);
      const bool closed = cell < kCells - 1;  // a negative cell holds its upper edge
      while (index < 255 && (bounds_[index] < upper || (closed && bounds_[index] == upper)))
        ++index;
      const int inside = index - first;
      if (inside > steps_) steps_ = inside;
      // A cell at the ends or around zero holds more than one pattern of the top bits.
      const bool merged = cell % kCells == 0 || cell % kCells == kCells - 1;
      if (inside > 1 || (inside == 1 && merged)) one_boundary_ = false;
      const uint32_t low = inside == 0 ? 0xffffu : order(float_bits(bounds_[first])) & 0xffffu;
      cells_[cell] = static_cast<int32_t>(static_cast<uint32_t>(first) << 16 | low);
    }
  }

  BNBX_MEMBER typename V::I32 operator()(typename V::F32 x) const {
    using I32 = typename V::I32;
    const I32 bits = V::bits(x);
    const I32 sign = V::template shift_right<31>(bits);
    const I32 top = V::template shift_right<16>(V::abs_bits(x)) + I32(-kSmallest);
    const I32 cell = (V::min(V::max(top, I32(0)), I32(kCells - 1)) ^ sign) + I32(kCells);
    const I32 entry = V::gather(cells_, cell);
    I32 index = V::template shift_right<16>(entry);
    if (one_boundary_) {
      const I32 low = I32(0xffff);
      return index + V::where_greater((bits ^ sign) & low, entry & low, 1);
    }
    for (int i = 0; i < steps_; ++i) {
      index = index + V::where_greater(x, V::gather(bounds_, index), 1);
    }
    return index;
  }

 private:
  static constexpr int kSmallest = (127 - 24) << 7;  // 2^-24; smaller magnitudes share its cell
  static constexpr int kCells = (24 << 7) + 1;       // of one sign, up to 1.0

  // Bits whose lower 16 ascend with the value, for negative values too.
  static uint32_t order(uint32_t bits) { return (bits & 0x80000000u) != 0 ? ~bits : bits; }

  // Cells ascend: negative values first, by falling magnitude, then positive ones.
  static float upper_edge(int cell) {
    if (cell == 2 * kCells - 1) return 3.0e38f;
    if (cell == kCells - 1) return 0.0f;
    const int magnitude = cell < kCells ? kCells - 1 - cell : cell + 1 - kCells;
    const float edge = bits_float(static_cast<uint32_t>(magnitude + kSmallest) << 16);
    return cell < kCells ? -edge : edge;
  }

  float bounds_[256];
  int32_t cells_[2 * kCells];  // index of the first candidate, then the boundary's low bits
  int steps_ = 0;              // most boundaries in a cell
  bool one_boundary_ = true;
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
void quantize_blockwise(const void* A, DType dtype, int64_t n, const float* code, int64_t blocksize,
                        uint8_t* out, float* absmax, Stream) {
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
