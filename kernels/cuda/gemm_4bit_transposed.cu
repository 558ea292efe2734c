// gemm_4bit_transposed: the gradient of gemm_4bit with respect to its activations.
#include "cuda/launch_4bit.h"

namespace bnbx {
namespace gpu {

// A tile reads kWidth / 2 bytes of a row of the weight: less than 32 would waste what memory
// delivers at a time.
using Tile16 = Tile<64, 16, 128, 4, 1, 2, 16>;
using Tile64 = Tile<64, 64, 64, 4, 2, 1, 16>;

static void multiply_tiles(const Product4& p, float, Stream stream) {
  if (rows_per_weight(p) <= 16) return launch_tile<float, FloatTile16, true>(p, stream);
  launch_tile<float, FloatTile64, true>(p, stream);
}

template <class T>
static void multiply_tiles(const Product4& p, T, Stream stream) {
  if (fits<T, LargeTile>()) {
    if (is_large(p, p.K)) return launch_tile<T, LargeTile, true>(p, stream);
    if (rows_per_weight(p) <= 16) return launch_tile<T, Tile16, true>(p, stream);
  }
  static_assert(TileMemory<T, Tile64>::bytes(2) <= kLeastShared);
  launch_tile<T, Tile64, true>(p, stream);
}

void multiply_4bit_transposed(const Product4& p, DType dtype, Stream stream) {
  if (p.M == 0 || p.K == 0) return;
  with_type(dtype, [&](auto type) { multiply_tiles(p, type, stream); });
}

}  // namespace gpu

void gemm_4bit_transposed(const void* A, DType dtype, int64_t M, int64_t N, int64_t K,
                          const uint8_t* B, const BlockScales& scales, QuantType quant_type,
                          void* out, Stream stream) {
  const auto p =
      gpu::make_product(A, dtype, M, nullptr, 1, N, K, B, scales, quant_type, nullptr, out, true);
  gpu::multiply_4bit_transposed(p, dtype, stream);
}

}  // namespace bnbx
