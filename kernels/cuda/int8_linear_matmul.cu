// int8_linear_matmul: the sums themselves.
#include "cuda/int8_dispatch.h"

namespace bnbx {
namespace gpu {
namespace {

struct StoreSums {
  int32_t* out;
  bool aligned;

  template <class Tile>
  __device__ void store_tile(const Int8Operands& x, const Place<Tile>& place,
                             const typename Tile::Sums& sums, int8_t*) const {
    if (place.split != 0) return;
#pragma unroll
    for (int i = 0; i < 2 * Tile::kRowTiles; ++i) {
      const int64_t m = place.lane_row + 8 * i;
      if (m >= x.M) continue;
      int32_t run[Tile::kRun];
#pragma unroll
      for (int c = 0; c < Tile::kRun; ++c) run[c] = sums[i / 2][c / 2][i % 2 * 2 + c % 2];
      store_run(out + m * x.N, place.lane_column, x.N, aligned, run);
    }
  }

  template <int kRows>
  __device__ void store_column(const Int8Operands& x, int64_t n,
                               const int32_t (&sums)[kRows]) const {
    if (threadIdx.x % kGroup != 0) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < x.M) out[r * x.N + n] = sums[r];
    }
  }
};

}  // namespace
}  // namespace gpu

void int8_linear_matmul(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                        int32_t* out, Stream stream) {
  const gpu::StoreSums epilogue{out, N % 4 == 0 && gpu::is_aligned(out, 16)};
  gpu::multiply(gpu::Int8Operands(A, B, M, N, K), epilogue, stream);
}

}  // namespace bnbx
