// scale_search_4bit: for each block the scale, of either sign, with the smallest squared error.
//
// For given codes q the best scale is <x, q> / <q, q>, and the error left is |x|^2 less
// <x, q>^2 / <q, q>. So a few trial scales are enough: each is judged by what its codes are worth
// at their best scale. A lane is a block: sums over a block's elements are made in order on every
// instruction set, and the scales found have the same bits.
#pragma once

#include "avx/encode_4bit.h"
#include "avx/workspace.h"

namespace bnbx::cpu {

// Blocks whose largest magnitude is below are left as they are: a trial could lose all its bits.
static constexpr float kSmallestSearched = 1e-30f;
static constexpr int kTrialsAtOnce = 4;  // independent chains of additions

template <class V>
class ScaleSearch {
 public:
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  static constexpr int64_t kBlocks = V::kWidth;

  ScaleSearch(const Codebook4& book, const float* importance, int64_t columns, int64_t blocksize)
      : encode_(book),
        importance_(importance),
        columns_(columns),
        values_(allocate<float>(kBlocks * blocksize)),
        weights_(allocate<float>(importance == nullptr ? 0 : kBlocks * blocksize)) {
    float levels[16];
    for (int i = 0; i < 16; ++i) levels[i] = book.values[book.code_at[i]];
    levels_ = V::table16(levels);
  }

  // Finds the scales of up to kBlocks blocks; n elements, from the one numbered `first` on.
  template <class T>
  void operator()(const T* A, int64_t first, int64_t n, int64_t blocksize, const float* factors,
                  int64_t trials, int64_t refinements, float* absmax) {
    float largest[kBlocks] = {};
    const int64_t blocks = ceil_div(n, blocksize);
    size_ = smaller(n, blocksize);
    memset(values_.get(), 0, kBlocks * size_ * sizeof(float));
    if (importance_ != nullptr) memset(weights_.get(), 0, kBlocks * size_ * sizeof(float));
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t start = b * blocksize;
      largest[b] = spread(A + start, first + start, smaller(blocksize, n - start), b);
    }
    const F32 ratio = importance_ == nullptr ? best<false>(factors, trials, refinements)
                                             : best<true>(factors, trials, refinements);
    float ratios[kBlocks];
    V::store(ratios, ratio);
    for (int64_t b = 0; b < blocks; ++b) {
      const float scale = largest[b] * ratios[b];
      absmax[b] = scale - scale == 0.0f ? scale : largest[b];  // unless it has become infinite
    }
  }

 private:
  struct Sums {
    F32 xq, qq;
  };

  // Writes a block, in units of its largest magnitude, and its weights into lane b.
  template <class T>
  float spread(const T* A, int64_t first, int64_t n, int64_t b) {
    const float absmax = finite_absmax<V>(A, n);
    if (!(absmax >= kSmallestSearched)) return absmax;
    const F32 inverse(1.0f / absmax);
    sweep<V>(n, [&](int64_t i, auto lanes) {
      float scaled[V::kWidth];
      V::store(scaled, load<V>(A + i, lanes) * inverse);
      const int64_t count = smaller(V::kWidth, n - i);
      for (int64_t j = 0; j < count; ++j) values_[(i + j) * kBlocks + b] = scaled[j];
    });
    if (importance_ != nullptr) {
      int64_t column = first % columns_;
      for (int64_t j = 0; j < n; ++j) {
        weights_[j * kBlocks + b] = importance_[column];
        column = column + 1 == columns_ ? 0 : column + 1;
      }
    }
    return absmax;
  }

  F32 level(F32 x) const { return V::lookup(levels_, encode_.position(x)); }

  static F32 where(I32 mask, F32 a, F32 b) {
    return V::from_bits((V::bits(a) & mask) | (V::bits(b) & (mask ^ I32(-1))));
  }

  // Sums over the elements of each block for the codes at kCount scales, given by their inverses.
  template <bool kWeighted, int kCount>
  void sums(const F32* inverses, Sums* out) const {
    for (int t = 0; t < kCount; ++t) out[t] = {F32(0.0f), F32(0.0f)};
    for (int64_t i = 0; i < size_; ++i) {
      const F32 x = V::load(values_.get() + i * kBlocks);
      F32 weight(1.0f);
      if (kWeighted) weight = V::load(weights_.get() + i * kBlocks);
      for (int t = 0; t < kCount; ++t) {
        const F32 q = level(x * inverses[t]);
        const F32 weighted = kWeighted ? weight * q : q;
        out[t].xq = out[t].xq + x * weighted;
        out[t].qq = out[t].qq + q * weighted;
      }
    }
  }

  template <bool kWeighted>
  F32 error(F32 ratio) const {
    const F32 inverse = F32(1.0f) / ratio;
    F32 sum(0.0f);
    for (int64_t i = 0; i < size_; ++i) {
      const F32 x = V::load(values_.get() + i * kBlocks);
      const F32 off = x - level(x * inverse) * ratio;
      const F32 weighted = kWeighted ? V::load(weights_.get() + i * kBlocks) * off : off;
      sum = sum + off * weighted;
    }
    return sum;
  }

  // Takes the scale that is best for some codes if they are worth more than those before.
  static void judge(const Sums& sums, F32* worth, F32* ratio) {
    const F32 fitted = sums.xq / sums.qq;  // NaN, which is not more, if all codes are zero
    const F32 found = fitted * sums.xq;
    const I32 more = V::where_greater(found, *worth, -1);
    *worth = where(more, found, *worth);
    *ratio = where(more, fitted, *ratio);
  }

  // The best scale over the largest magnitude; 1 if nothing is better.
  template <bool kWeighted>
  F32 best(const float* factors, int64_t trials, int64_t refinements) const {
    F32 worth(0.0f), ratio(1.0f), inverses[kTrialsAtOnce];
    Sums found[kTrialsAtOnce];
    for (int64_t t = 0; t < trials; t += kTrialsAtOnce) {
      for (int64_t i = 0; i < kTrialsAtOnce; ++i) {
        inverses[i] = F32(1.0f / factors[smaller(t + i, trials - 1)]);
      }
      sums<kWeighted, kTrialsAtOnce>(inverses, found);
      for (const Sums& of_trial : found) judge(of_trial, &worth, &ratio);
    }
    for (int64_t r = 0; r < refinements; ++r) {
      inverses[0] = F32(1.0f) / ratio;
      sums<kWeighted, 1>(inverses, found);
      judge(found[0], &worth, &ratio);
    }
    const F32 plain(1.0f);
    const I32 better = V::where_greater(error<kWeighted>(plain), error<kWeighted>(ratio), -1);
    return where(better, ratio, plain);
  }

  Encoder4<V> encode_;
  typename V::Table16 levels_;
  const float* importance_;
  int64_t columns_;
  Workspace<float> values_, weights_;
  int64_t size_ = 0;
};

template <class V>
void scale_search_4bit(const void* A, DType dtype, int64_t n, const float* importance,
                       int64_t columns, const float* factors, int64_t trials, int64_t refinements,
                       int64_t blocksize, QuantType quant_type, float* absmax, Stream) {
  with_type(dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(A);
    const int64_t group = ScaleSearch<V>::kBlocks * blocksize;
    parallel_for(ceil_div(n, group), ceil_div(8192, group), [&](int64_t g, int64_t end) {
      ScaleSearch<V> search(codebook(quant_type), importance, columns, blocksize);
      for (; g < end; ++g) {
        const int64_t first = g * group;
        search(values + first, first, smaller(group, n - first), blocksize, factors, trials,
               refinements, absmax + g * ScaleSearch<V>::kBlocks);
      }
    });
  });
}

}  // namespace bnbx::cpu
