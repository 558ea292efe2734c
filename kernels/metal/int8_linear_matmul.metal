// int8_linear_matmul: a group makes a tile of 32 by 32 sums, a thread four of them, in steps of 32
// of the depth. Sums of integers are exact, which those of floats would be up to a depth of 1024.
#include "metal/int8_rows.h"

namespace bnbx {

BNBX_CONSTANT uint kSide = 32;  // of a tile, and the depth of a step

// Rows `first` to first + 31 of a matrix (rows, K), columns k to k + 31, zeros outside of it. The
// padding keeps lanes that read a column in different banks.
BNBX_INLINE void stage(const device int8_t* from, ulong rows, ulong K, ulong first, ulong k,
                       uint lane, uint simd, threadgroup int8_t (*to)[kSide + 4]) {
  for (uint r = simd; r < kSide; r += kSimds) {
    const bool inside = first + r < rows && k + lane < K;
    to[r][lane] = inside ? from[(first + r) * K + k + lane] : int8_t(0);
  }
}

}  // namespace bnbx

template <class Sum>
BNBX_KERNEL void int8_linear_matmul(const device int8_t* A, const device int8_t* B,
                                    constant long& M, constant long& N, constant long& K,
                                    device Sum* out, BNBX_PLACE) {
  BNBX_SHARED int8_t rows[kSide][kSide + 4];
  BNBX_SHARED int8_t columns[kSide][kSide + 4];
  const ulong tiles = (ulong(N) + kSide - 1) / kSide;
  const ulong m = block / tiles * kSide, n = block % tiles * kSide;
  Sum sums[kSide / kSimds] = {};
  for (ulong k = 0; k < ulong(K); k += kSide) {
    stage(A, M, K, m, k, lane, simd, rows);
    stage(B, N, K, n, k, lane, simd, columns);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    for (uint i = 0; i < kSide; ++i) {
      const Sum b = columns[lane][i];
      for (uint r = 0; r < kSide / kSimds; ++r) sums[r] += Sum(rows[simd + r * kSimds][i]) * b;
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
  for (uint r = 0; r < kSide / kSimds; ++r) {
    const ulong row = m + simd + r * kSimds;
    if (row < ulong(M) && n + lane < ulong(N)) out[row * N + n + lane] = sums[r];
  }
}

BNBX_INSTANTIATE("int8_linear_matmul", int8_linear_matmul<int>)
