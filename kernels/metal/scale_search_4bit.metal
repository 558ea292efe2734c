// scale_search_4bit: a thread has a block, so that the sums over its elements are made in order and
// have the same bits on every backend. kernels/avx/scale_search_4bit.h explains the search.
#include "metal/codes_4bit.h"

namespace bnbx {

// Blocks whose largest magnitude is below are left as they are: a trial could lose all its bits.
BNBX_CONSTANT float kSmallestSearched = 1e-30f;

template <class T>
struct Search {
  const device T* A;           // of the block
  ulong first, count, length;  // its place in the tensor, its elements, with the zeros behind them
  const device float* importance;
  ulong columns;  // 0: all errors weigh the same
  long quant_type;
  float unit;  // the inverse of the largest magnitude; 0 if the block is not searched
  float worth, ratio;

  BNBX_MEMBER float value(ulong i) const { return i < count ? element(A, i) * unit : 0.0f; }
  BNBX_MEMBER float weighted(ulong i, float x) const {
    if (columns == 0) return x;
    return i < count ? importance[(first + i) % columns] * x : 0.0f;
  }
  BNBX_MEMBER float nearest(float x) const {
    return level(quant_type, nearest_code(quant_type, x));
  }

  // Takes the scale that is best for the codes at `inverse` if they are worth more than others.
  BNBX_MEMBER void judge(float inverse) {
    float xq = 0.0f, qq = 0.0f;
    for (ulong i = 0; i < length; ++i) {
      const float x = value(i), q = nearest(x * inverse), of_q = weighted(i, q);
      xq = xq + x * of_q;
      qq = qq + q * of_q;
    }
    const float fitted = xq / qq;  // NaN, which is not more, if all codes are zero
    const float found = fitted * xq;
    if (found > worth) {
      worth = found;
      ratio = fitted;
    }
  }

  BNBX_MEMBER float squared_error(float inverse, float scale) const {
    float sum = 0.0f;
    for (ulong i = 0; i < length; ++i) {
      const float x = value(i), off = x - nearest(x * inverse) * scale;
      sum = sum + off * weighted(i, off);
    }
    return sum;
  }
};

}  // namespace bnbx

template <class T>
BNBX_KERNEL void scale_search_4bit(const device T* A, constant long& n,
                                   const device float* importance, constant long& columns,
                                   const device float* factors, constant long& trials,
                                   constant long& refinements, constant long& blocksize,
                                   constant long& quant_type, device float* absmax, BNBX_PLACE) {
  const ulong number = thread_number(block, tid);
  Search<T> search;
  search.first = number * blocksize;
  if (search.first >= ulong(n)) return;
  search.A = A + search.first;
  search.length = smaller(blocksize, n);
  search.count = smaller(search.length, n - search.first);
  search.importance = importance;
  search.columns = columns;
  search.quant_type = quant_type;
  uint bits = 0;
  for (ulong i = 0; i < search.count; ++i) {
    bits = metal::max(bits, magnitude_bits(element(search.A, i)));
  }
  const float largest = finite_magnitude(bits);
  search.unit = largest >= kSmallestSearched ? 1.0f / largest : 0.0f;
  search.worth = 0.0f;
  search.ratio = 1.0f;
  for (long t = 0; t < trials; ++t) search.judge(1.0f / factors[t]);
  for (long r = 0; r < refinements; ++r) search.judge(1.0f / search.ratio);
  const float plain = search.squared_error(1.0f, 1.0f);
  const float scaled = search.squared_error(1.0f / search.ratio, search.ratio);
  const float scale = largest * (plain > scaled ? search.ratio : 1.0f);
  absmax[number] = scale - scale == 0.0f ? scale : largest;  // unless it has become infinite
}

BNBX_INSTANTIATE("scale_search_4bit_float32", scale_search_4bit<float>)
BNBX_INSTANTIATE("scale_search_4bit_float16", scale_search_4bit<float16>)
BNBX_INSTANTIATE("scale_search_4bit_bfloat16", scale_search_4bit<bfloat16>)
