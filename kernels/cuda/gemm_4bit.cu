// gemm_4bit: activations times the transpose of a 4-bit weight.
#include "cuda/launch_4bit.h"

namespace bnbx {
namespace gpu {

// Tiles by rows of activations; see Tile. Few rows: narrow tiles, so that a weight of 4096 rows
// makes 128 blocks, and deep ones, so that each has enough bytes on their way.
using Tile16 = Tile<32, 16, 256, 2, 1, 4, 16>;
using Tile32 = Tile<32, 32, 128, 2, 2, 2, 16>;
using Tile64 = Tile<32, 64, 128, 2, 2, 2, 16>;
using Tile128 = Tile<32, 128, 64, 2, 4, 1, 16>;

// Rows of activations up to which reading the weight is all that counts.
static constexpr int64_t kGemvMost = 4;

// Calls `work` with the tile of a product; of float32 it is the one in launch_4bit.h.
template <class T, class Work>
static void with_tile(const Product4& p, T, Work&& work) {
  const int64_t rows = rows_per_weight(p);
  if (!fits<T, Tile32>()) return work(SmallTile{});
  if (!fits<T, LargeTile>() || (16 < rows && rows <= 32)) {
    static_assert(TileMemory<T, Tile32>::bytes(2) <= kLeastShared);
    return work(Tile32{});
  }
  if (is_large<T>(p, p.N, p.K)) return work(LargeTile{});
  if (rows <= 16) return work(Tile16{});
  if (rows <= 64) return work(Tile64{});
  work(Tile128{});
}

void multiply_4bit(const Product4& p, DType dtype, Stream stream) {
  if (p.M == 0 || p.N == 0) return;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t rows = rows_per_weight(p);
    if (p.aligned_weight && rows <= kGemvMost) {
      if (rows == 1) return launch_gemv<T, 1>(p, stream);
      if (rows == 2) return launch_gemv<T, 2>(p, stream);
      return launch_gemv<T, 4>(p, stream);
    }
    with_tile(p, type, [&](auto tile) {
      using Tile = decltype(tile);
      launch_tile<T, Tile, false>(p, count_splits<T, Tile>(p, p.N, p.K), stream);
    });
  });
}

}  // namespace gpu

void gemm_4bit(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const uint8_t* B,
               const BlockScales& scales, QuantType quant_type, const void* bias, void* out,
               float* workspace, Stream stream) {
  auto p =
      gpu::make_product(A, dtype, M, nullptr, 1, N, K, B, scales, quant_type, bias, out, false);
  p.workspace = workspace;
  gpu::multiply_4bit(p, dtype, stream);
}

int64_t gemm_4bit_workspace(DType dtype, int64_t M, int64_t N, int64_t K) {
  if (M <= gpu::kGemvMost) return 0;
  const auto p = gpu::sizes_of_product(M, N, K);
  int64_t sums = 0;
  gpu::with_type(dtype, [&](auto type) {
    gpu::with_tile(p, type, [&](auto tile) {
      sums = gpu::count_sums<decltype(type), decltype(tile), false>(p);
    });
  });
  return sums;
}

}  // namespace bnbx
