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

static void multiply_tiles(const Product4& p, float, Stream stream) {
  if (rows_per_weight(p) <= 16) return launch_tile<float, FloatTile16, false>(p, stream);
  launch_tile<float, FloatTile64, false>(p, stream);
}

template <class T>
static void multiply_tiles(const Product4& p, T, Stream stream) {
  const int64_t rows = rows_per_weight(p);
  if (!fits<T, LargeTile>() || (16 < rows && rows <= 32)) {
    static_assert(TileMemory<T, Tile32>::bytes(2) <= kLeastShared);
    return launch_tile<T, Tile32, false>(p, stream);
  }
  if (is_large(p, p.N)) return launch_tile<T, LargeTile, false>(p, stream);
  if (rows <= 16) return launch_tile<T, Tile16, false>(p, stream);
  if (rows <= 64) return launch_tile<T, Tile64, false>(p, stream);
  launch_tile<T, Tile128, false>(p, stream);
}

void multiply_4bit(const Product4& p, DType dtype, Stream stream) {
  if (p.M == 0 || p.N == 0) return;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t rows = rows_per_weight(p);
    if (!p.aligned_weight || rows > 4) return multiply_tiles(p, type, stream);
    if (rows == 1) return launch_gemv<T, 1>(p, stream);
    if (rows == 2) return launch_gemv<T, 2>(p, stream);
    launch_gemv<T, 4>(p, stream);
  });
}

}  // namespace gpu

void gemm_4bit(const void* A, DType dtype, int64_t M, int64_t N, int64_t K, const uint8_t* B,
               const BlockScales& scales, QuantType quant_type, const void* bias, void* out,
               Stream stream) {
  const auto p =
      gpu::make_product(A, dtype, M, nullptr, 1, N, K, B, scales, quant_type, bias, out, false);
  gpu::multiply_4bit(p, dtype, stream);
}

}  // namespace bnbx
