// gemm_4bit_transposed: the gradient of gemm_4bit with respect to its activations.
#include "cuda/launch_4bit.h"

namespace bnbx {
namespace gpu {

// A tile reads kWidth / 2 bytes of a row of the weight: less than 32 would waste what memory
// delivers at a time.
using Tile16 = Tile<64, 16, 128, 4, 1, 2, 16>;
using Tile64 = Tile<64, 64, 64, 4, 2, 1, 16>;

// Calls `work` with the tile of a product; of float32 it is the one in launch_4bit.h.
template <class T, class Work>
static void with_tile(const Product4& p, T, Work&& work) {
  if (fits<T, LargeTile>()) {
    if (is_large<T>(p, p.K, p.N)) return work(LargeTile{});
    if (rows_per_weight(p) <= 16) return work(Tile16{});
  }
  if (!fits<T, Tile64>()) return work(SmallTile{});
  static_assert(TileMemory<T, Tile64>::bytes(2) <= kLeastShared);
  work(Tile64{});
}

void multiply_4bit_transposed(const Product4& p, DType dtype, Stream stream) {
  if (p.M == 0 || p.K == 0) return;
  with_type(dtype, [&](auto type) {
    with_tile(p, type, [&](auto tile) {
      using T = decltype(type);
      using Tile = decltype(tile);
      launch_tile<T, Tile, true>(p, count_splits<T, Tile>(p, p.K, p.N), stream);
    });
  });
}

}  // namespace gpu

void gemm_4bit_transposed(const void* A, DType dtype, int64_t M, int64_t N, int64_t K,
                          const uint8_t* B, const BlockScales& scales, QuantType quant_type,
                          void* out, float* workspace, Stream stream) {
  auto p =
      gpu::make_product(A, dtype, M, nullptr, 1, N, K, B, scales, quant_type, nullptr, out, true);
  p.workspace = workspace;
  gpu::multiply_4bit_transposed(p, dtype, stream);
}

int64_t gemm_4bit_transposed_workspace(DType dtype, int64_t M, int64_t N, int64_t K) {
  const auto p = gpu::sizes_of_product(M, N, K);
  int64_t sums = 0;
  gpu::with_type(dtype, [&](auto type) {
    gpu::with_tile(p, type, [&](auto tile) {
      sums = gpu::count_sums<decltype(type), decltype(tile), true>(p);
    });
  });
  return sums;
}

}  // namespace bnbx
