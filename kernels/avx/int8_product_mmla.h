// The int8 product with smmla, which multiplies two rows by two rows, eight values of each, in one
// instruction: twice the products of sdot. Rows lie in memory in pairs, eight values of the one
// and eight of the other; 64 rows of the weight are laid so at a time, and serve all rows of
// activations.
#pragma once

#include <arm_neon.h>

#include "avx/int8_product.h"

namespace bnbx::cpu {

static constexpr int64_t kInt8Step = 8;  // values of a row that one instruction takes
// Of rows, on either side of a tile: 16 of the 32 registers hold sums.
static constexpr int kPairs = 4;

// [ceil(rows / 2)][steps][2 rows][8 values], zeros beyond the last value; the second of an odd last
// row is that row again.
static inline void pack_int8_pairs(const int8_t* A, int64_t rows, int64_t K, int64_t steps,
                                   int8_t* out) {
  for (int64_t r = 0; r < rows; r += 2) {
    const int8_t* first = A + r * K;
    const int8_t* second = r + 1 < rows ? first + K : first;
    int64_t k = 0;
    for (; k + kInt8Step <= K; k += kInt8Step, out += 16) {
      vst1q_s8(out, vcombine_s8(vld1_s8(first + k), vld1_s8(second + k)));
    }
    if (k == steps * kInt8Step) continue;
    memset(out, 0, 16);
    memcpy(out, first + k, K - k);
    memcpy(out + kInt8Step, second + k, K - k);
    out += 16;
  }
}

// sums[r][c] = row r of A times row c of B, for kRowPairs pairs of rows of A and kPairs of B; a row
// of sums is kInt8Run long.
template <int kRowPairs>
static inline void multiply_int8_pairs(const int8_t* A, const int8_t* B, int64_t steps,
                                       int32_t* sums) {
  int32x4_t acc[kRowPairs][kPairs];  // each two rows of two sums
  for (auto& row : acc) {
    for (int32x4_t& block : row) block = vdupq_n_s32(0);
  }
  for (int64_t s = 0; s < steps; ++s) {
    int8x16_t b[kPairs];
    for (int c = 0; c < kPairs; ++c) b[c] = vld1q_s8(B + (c * steps + s) * 16);
    for (int r = 0; r < kRowPairs; ++r) {
      const int8x16_t a = vld1q_s8(A + (r * steps + s) * 16);
      for (int c = 0; c < kPairs; ++c) acc[r][c] = vmmlaq_s32(acc[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < kRowPairs; ++r) {
    for (int c = 0; c < kPairs; ++c) {
      int32_t* out = sums + 2 * r * kInt8Run + 2 * c;
      vst1_s32(out, vget_low_s32(acc[r][c]));
      vst1_s32(out + kInt8Run, vget_high_s32(acc[r][c]));
    }
  }
}

template <class V>
struct PairProduct {
  // As DotProduct::run, which is as good for one row.
  template <class Epilogue>
  static void run(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                  Epilogue&& epilogue) {
    if (M <= 1) return DotProduct<V>::run(A, B, M, N, K, epilogue);
    const int64_t steps = ceil_div(K, kInt8Step), pair_bytes = steps * 16;
    const auto activations = allocate<int8_t>(ceil_div(M, 2) * pair_bytes);
    parallel_for(ceil_div(M, 2), ceil_div(32768, K + 1), [&](int64_t begin, int64_t end) {
      pack_int8_pairs(A + 2 * begin * K, smaller(M, 2 * end) - 2 * begin, K, steps,
                      activations.get() + begin * pair_bytes);
    });
    const int64_t grain = ceil_div(65536, kInt8Run * (K + 1));
    parallel_for(ceil_div(N, kInt8Run), grain, [&](int64_t i, int64_t end) {
      const auto weights = allocate<int8_t>(kInt8Run / 2 * pair_bytes);
      memset(weights.get(), 0, kInt8Run / 2 * pair_bytes);
      for (; i < end; ++i) {
        const int64_t n0 = i * kInt8Run;
        const int64_t count = smaller(kInt8Run, N - n0);
        pack_int8_pairs(B + n0 * K, count, K, steps, weights.get());
        for (int64_t m = 0; m < M; m += 2 * kPairs) {
          const int64_t rows = smaller(2 * kPairs, M - m);
          int32_t sums[2 * kPairs * kInt8Run];
          multiply_run(activations.get() + m / 2 * pair_bytes, ceil_div(rows, 2), weights.get(),
                       ceil_div(count, 2 * kPairs), steps, sums);
          for (int64_t r = 0; r < rows; ++r) epilogue(m + r, n0, count, sums + r * kInt8Run);
        }
      }
    });
  }

 private:
  static void multiply_run(const int8_t* A, int64_t row_pairs, const int8_t* B, int64_t tiles,
                           int64_t steps, int32_t* sums) {
    for (int64_t t = 0; t < tiles; ++t, B += kPairs * steps * 16, sums += 2 * kPairs) {
      switch (row_pairs) {
        case 1: multiply_int8_pairs<1>(A, B, steps, sums); break;
        case 2: multiply_int8_pairs<2>(A, B, steps, sums); break;
        case 3: multiply_int8_pairs<3>(A, B, steps, sums); break;
        default: multiply_int8_pairs<4>(A, B, steps, sums);
      }
    }
  }
};

}  // namespace bnbx::cpu
