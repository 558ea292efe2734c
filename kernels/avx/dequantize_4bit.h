// dequantize_4bit: codes through a table in registers, times the scale of their block.
#pragma once

#include "avx/parallel.h"
#include "avx/quantize_4bit.h"
#include "avx/sweep.h"

namespace bnbx::cpu {

// Scale of block i; see BlockScales.
static inline float scale_of(const BlockScales& scales, int64_t i) {
  if (scales.absmax_8bit == nullptr) return scales.absmax[i];
  return scales.absmax_code[scales.absmax_8bit[i]] * scales.absmax[i / scales.absmax_blocksize] +
         *scales.absmax_offset;
}

// Decodes the elements [begin, end) of a packed tensor; a row may start in the middle of a byte.
// The table is a value, which stays in registers; behind a reference the stores might change it.
template <class V, class T>
static inline void decode_4bit(const uint8_t* packed, const BlockScales& scales,
                               typename V::Table16 table, const float* values, int64_t begin,
                               int64_t end, T* out) {
  for (int64_t i = begin; i < end;) {
    const int64_t block = i / scales.blocksize;
    const int64_t stop = smaller(end, (block + 1) * scales.blocksize);
    const float scale = scale_of(scales, block);
    if (i % 2 != 0) {
      from_float(values[packed[i / 2] & 15] * scale, out + (i - begin));
      ++i;
    }
    sweep<V>(stop - i, [&](int64_t k, auto lanes) {
      const auto codes = load_nibbles<V>(packed + (i + k) / 2, lanes);
      const auto decoded = V::lookup(table, codes) * typename V::F32(scale);
      store<V>(out + (i + k - begin), decoded, lanes);
    });
    i = stop;
  }
}

template <class V>
void dequantize_4bit(const uint8_t* A, const float* absmax, int64_t n, int64_t blocksize,
                     QuantType quant_type, void* out, DType dtype, Stream) {
  with_type(dtype, [&](auto type) {
    auto* values = static_cast<decltype(type)*>(out);
    const BlockScales scales{absmax, blocksize, nullptr, nullptr, nullptr, 1};
    const Codebook4& book = codebook(quant_type);
    const auto table = V::table16(book.values);
    parallel_for(ceil_div(n, blocksize), ceil_div(8192, blocksize), [&](int64_t b, int64_t end) {
      const int64_t start = b * blocksize;
      decode_4bit<V>(A, scales, table, book.values, start, smaller(n, end * blocksize),
                     values + start);
    });
  });
}

}  // namespace bnbx::cpu
