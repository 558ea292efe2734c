// gemm_4bit_transposed: the gradient of gemm_4bit with respect to its input. A few rows of the
// weight are decoded into the first-level cache; each row of A adds its multiples of them to its
// output.
#pragma once

#include "avx/dequantize_4bit.h"
#include "avx/parallel.h"
#include "avx/product_4bit.h"
#include "avx/sweep.h"
#include "avx/workspace.h"

namespace bnbx::cpu {

static constexpr int64_t kStripe = 256;  // columns of the weight, and of the output, at a time
static constexpr int64_t kStripeRows = 16;

// sums[m] += A's row m (kRows entries) times the decoded rows, over n columns.
template <class V, class T>
static inline void add_multiples(const T* a, int64_t rows, const float* decoded, int64_t n,
                                 float* sums) {
  using F32 = typename V::F32;
  float factors[kStripeRows] = {};
  for (int64_t r = 0; r < rows; ++r) factors[r] = to_float(a[r]);
  sweep<V>(n, [&](int64_t k, auto lanes) {
    F32 sum = load<V>(sums + k, lanes);
    for (int64_t r = 0; r < kStripeRows; ++r) {
      sum = V::fma(F32(factors[r]), load<V>(decoded + r * kStripe + k, lanes), sum);
    }
    store<V>(sums + k, sum, lanes);
  });
}

template <class V>
void gemm_4bit_transposed(const Product4& p) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t M = p.M, N = p.N, K = p.K;
    const T* rows_of_A = static_cast<const T*>(p.A);
    T* result = static_cast<T*>(p.out);
    const Codebook4& book = codebook(p.quant_type);
    const auto table = V::table16(book.values);
    const int64_t stripes = ceil_div(p.end - p.begin, kStripe);
    parallel_for(stripes, ceil_div(32768, kStripe * (N + 1)), [&](int64_t stripe, int64_t end) {
      const auto sums = allocate<float>(M * kStripe);
      alignas(64) float decoded[kStripeRows * kStripe];
      for (; stripe < end; ++stripe) {
        const int64_t k0 = p.begin + stripe * kStripe;
        const int64_t columns = smaller(kStripe, p.end - k0);
        memset(sums.get(), 0, M * kStripe * sizeof(float));
        for (int64_t n0 = 0; n0 < N; n0 += kStripeRows) {
          const int64_t rows = smaller(kStripeRows, N - n0);
          memset(decoded, 0, sizeof(decoded));
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t first = (p.first_row + n0 + r) * K + k0;
            decode_4bit<V>(p.B, p.scales, table, book.values, first, first + columns,
                           decoded + r * kStripe);
          }
          for (int64_t m = 0; m < M; ++m) {
            add_multiples<V>(rows_of_A + m * N + n0, rows, decoded, columns,
                             sums.get() + m * kStripe);
          }
        }
        for (int64_t m = 0; m < M; ++m) {
          sweep<V>(columns, [&](int64_t k, auto lanes) {
            store<V>(result + m * K + k0 + k, load<V>(sums.get() + m * kStripe + k, lanes), lanes);
          });
        }
      }
    });
  });
}

}  // namespace bnbx::cpu
