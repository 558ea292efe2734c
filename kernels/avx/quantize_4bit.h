// quantize_4bit: absmax of each block, then the nearest of 16 levels by bisection in registers.
#pragma once

#include "avx/parallel.h"
#include "avx/sweep.h"
#include "common/codebooks.h"

namespace bnbx::cpu {

static inline const Codebook4& codebook(QuantType quant_type) {
  return quant_type == QuantType::kNF4 ? kNF4 : kFP4;
}

// Finds the position of the nearest of the 16 sorted levels, then its code.
template <class V>
class Encoder4 {
 public:
  explicit Encoder4(const Codebook4& book) {
    float bounds[16] = {};  // by position; the last is never looked up
    float codes[16];        // small integers in the bits of floats, which a lookup only moves
    memcpy(bounds, book.bounds, sizeof(book.bounds));
    for (int i = 0; i < 16; ++i) codes[i] = bits_float(book.code_at[i]);
    bounds_ = V::table16(bounds);
    codes_ = V::table16(codes);
    middle_ = typename V::F32(book.bounds[7]);
  }

  // The position among the sorted levels.
  typename V::I32 position(typename V::F32 x) const {
    using I32 = typename V::I32;
    I32 position = V::where_greater(x, middle_, 8);
    position = position | V::where_greater(x, V::lookup(bounds_, position + I32(3)), 4);
    position = position | V::where_greater(x, V::lookup(bounds_, position + I32(1)), 2);
    position = position | V::where_greater(x, V::lookup(bounds_, position), 1);
    return position;
  }

  typename V::I32 operator()(typename V::F32 x) const {
    return V::bits(V::lookup(codes_, position(x)));
  }

 private:
  typename V::Table16 bounds_, codes_;
  typename V::F32 middle_;
};

// The inverse of a scale, of either sign, that stays finite.
static inline float inverse_scale(float scale) {
  const float magnitude = 1.0f / larger(scale < 0.0f ? -scale : scale, kSmallestAbsmax);
  return scale < 0.0f ? -magnitude : magnitude;
}

// Quantizes one block with a scale that is NaN if the block is not finite.
template <class V, class T>
static inline void encode_4bit_block(const T* A, float absmax, int64_t n, const Encoder4<V>& encode,
                                     uint8_t* out) {
  if (absmax != absmax) {  // decodes to NaN whatever the codes are
    memset(out, 0, (n + 1) / 2);
    return;
  }
  const typename V::F32 inverse(inverse_scale(absmax));
  sweep<V>(n, [&](int64_t i, auto lanes) {
    store_nibbles<V>(out + i / 2, encode(load<V>(A + i, lanes) * inverse), lanes);
  });
}

template <class V, class T>
static inline float quantize_4bit_block(const T* A, int64_t n, const Encoder4<V>& encode,
                                        uint8_t* out) {
  const float absmax = finite_absmax<V>(A, n);
  encode_4bit_block<V>(A, absmax, n, encode, out);
  return absmax;
}

template <class V>
void quantize_4bit(const void* A, DType dtype, int64_t n, int64_t blocksize, QuantType quant_type,
                   uint8_t* out, float* absmax, Stream) {
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    const Encoder4<V> encode(codebook(quant_type));
    parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
      for (; b < end; ++b) {
        const int64_t start = b * blocksize;
        const int64_t count = smaller(blocksize, n - start);
        absmax[b] = quantize_4bit_block<V>(values + start, count, encode, out + start / 2);
      }
    });
  });
}

}  // namespace bnbx::cpu
