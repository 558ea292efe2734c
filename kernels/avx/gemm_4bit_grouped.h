// gemm_4bit_grouped and gemm_4bit_grouped_transposed: the products of all experts, for which there
// is one parallel region. The experts' output columns are laid end to end and cut into a share for
// each thread, all of the same cost. So a thread has some whole experts and parts of at most two,
// and each of these is a call of the kernel for a single weight, which chooses its way by the
// expert's number of rows.
#pragma once

#include <cstring>

#include "avx/parallel.h"
#include "avx/product_4bit.h"

namespace bnbx::cpu {

static constexpr int64_t kCut = 64;          // columns: whole tiles, panels or groups of any kernel
static constexpr int64_t kDecodingCost = 8;  // of a column's weights, in rows of activations
static constexpr int64_t kLeastShare = 65536;  // multiply-adds worth a thread

static inline int64_t cuts_before(int64_t cost, int64_t cost_of_cut, int64_t cuts) {
  if (cost <= 0) return 0;
  const int64_t count = (cost + cost_of_cut - 1) / cost_of_cut;
  return count < cuts ? count : cuts;
}

// `stack` has the arguments of a product with all of A and the first expert's weight; `ends` the
// row of A behind the last one of each of the E experts. The rows behind the last expert's become
// zeros.
static inline void multiply_grouped(const Product4& stack, const int64_t* ends, int64_t E,
                                    bool transposed, void (*multiply)(const Product4&)) {
  const int64_t width = transposed ? stack.K : stack.N;
  const int64_t depth = transposed ? stack.N : stack.K;
  const int64_t itemsize = stack.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t cuts = (width + kCut - 1) / kCut;
  const auto cost_of_cut = [&](int64_t e) {
    const int64_t rows = ends[e] - (e == 0 ? 0 : ends[e - 1]);
    return rows == 0 ? 0 : rows + kDecodingCost;
  };
  int64_t total = 0;
  for (int64_t e = 0; e < E; ++e) total += cuts * cost_of_cut(e);
  const int64_t least = kLeastShare / (kCut * (depth + 1)) + 1;
  int64_t shares = (total + least - 1) / least;
  if (shares > thread_count()) shares = thread_count();
  parallel_for(shares, 1, [&](int64_t share, int64_t stop) {
    const int64_t low = total * share / shares, high = total * stop / shares;
    int64_t before = 0;  // the cost of the experts before e
    for (int64_t e = 0; e < E; ++e) {
      const int64_t cost = cost_of_cut(e);
      if (cost == 0) continue;
      const int64_t first = cuts_before(low - before, cost, cuts);
      const int64_t last = cuts_before(high - before, cost, cuts);
      before += cuts * cost;
      if (first >= last) continue;
      const int64_t row = e == 0 ? 0 : ends[e - 1];
      Product4 part = stack;
      part.A = static_cast<const uint8_t*>(stack.A) + row * depth * itemsize;
      part.out = static_cast<uint8_t*>(stack.out) + row * width * itemsize;
      part.M = ends[e] - row;
      if (stack.bias != nullptr) {
        part.bias = static_cast<const uint8_t*>(stack.bias) + e * width * itemsize;
      }
      part.first_row = e * stack.N;
      part.begin = first * kCut;
      part.end = last * kCut < width ? last * kCut : width;
      multiply(part);
    }
  });
  const int64_t end = E == 0 ? 0 : ends[E - 1];
  const size_t rest = static_cast<size_t>((stack.M - end) * width * itemsize);
  if (rest > 0) memset(static_cast<uint8_t*>(stack.out) + end * width * itemsize, 0, rest);
}

}  // namespace bnbx::cpu
