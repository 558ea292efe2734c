// gemm_4bit: activations times the transpose of a 4-bit weight.
#include "cuda/launch_4bit.h"

namespace bnbx {
namespace gpu {

// Tiles that decode into shared memory: for weights that are not aligned, for devices where the
// others do not fit, and for more rows.
using Tile32 = Tile<32, 32, 128, 2, 2, 2, 16>;
using Tile64 = Tile<32, 64, 128, 2, 2, 2, 16>;

// Rows of activations up to which reading the weight is all that counts, and a tensor core, most of
// whose product would be of no use, gains nothing.
static constexpr int64_t kGemvMost = 4, kGemvMostBesideOperands = 2;

// Rows up to which decoding the weight again for every 64 of them costs no more than writing it to
// shared memory and reading it from there for 128.
static constexpr int64_t kOperandsMost = 256;

// Shared memory of a block on the smallest device from 8.0 on (8.6). What has less has no
// asynchronous copies, and bfloat16 not in its tensor cores.
static constexpr int64_t kAsyncShared = 99 << 10;

template <class T>
static constexpr bool kCanDecodeInRegisters = sizeof(T) == 2 && kHasMma;

// Whether a product is one for tiles that decode in registers.
template <class T>
static bool decodes_in_registers(const Product4& p) {
  if constexpr (kCanDecodeInRegisters<T>) {
    static_assert(TileMemory<T, Operands8>::bytes(2) <= kAsyncShared);
    static_assert(TileMemory<T, Operands16>::bytes(2) <= kAsyncShared);
    static_assert(TileMemory<T, Operands32>::bytes(2) <= kAsyncShared);
    static_assert(TileMemory<T, Operands64>::bytes(2) <= kAsyncShared);
    return p.aligned_rows && p.aligned_weight && rows_per_weight(p) <= kOperandsMost &&
           shared_limit() >= kAsyncShared;
  }
  return false;
}

// Calls `work` with the tile of a product; of float32 it is the one in launch_4bit.h.
template <class T, class Work>
static void with_tile(const Product4& p, T, Work&& work) {
  const int64_t rows = rows_per_weight(p);
  if constexpr (kCanDecodeInRegisters<T>) {
    if (decodes_in_registers<T>(p)) {
      if (rows <= 8) return work(Operands8{});
      if (rows <= 16) return work(Operands16{});
      if (rows <= 32) return work(Operands32{});
      return work(Operands64{});
    }
  }
  if (!fits<T, Tile32>()) return work(SmallTile{});
  if (fits<T, LargeTile>() && is_large<T>(p, p.N, p.K)) return work(LargeTile{});
  static_assert(TileMemory<T, Tile32>::bytes(2) <= kLeastShared);
  if (rows <= 32 || !fits<T, Tile64>()) return work(Tile32{});
  work(Tile64{});
}

// Rows of activations up to which a product is one for gemv_4bit, which needs an aligned weight.
template <class T>
static int64_t gemv_most(const Product4& p) {
  if (!p.aligned_weight) return 0;
  return decodes_in_registers<T>(p) ? kGemvMostBesideOperands : kGemvMost;
}

void multiply_4bit(const Product4& p, DType dtype, Stream stream) {
  if (p.M == 0 || p.N == 0) return;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t rows = rows_per_weight(p);
    if (rows <= gemv_most<T>(p)) {
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
  auto p = gpu::sizes_of_product(M, N, K);
  int64_t sums = 0;
  gpu::with_type(dtype, [&](auto type) {
    // Whether the operands are aligned is not known yet.
    for (const bool aligned : {false, K % gpu::kUnit == 0}) {
      p.aligned_rows = p.aligned_weight = aligned;
      if (M <= gpu::gemv_most<decltype(type)>(p)) continue;
      gpu::with_tile(p, type, [&](auto tile) {
        sums = std::max(sums, gpu::count_sums<decltype(type), decltype(tile), false>(p));
      });
    }
  });
  return sums;
}

}  // namespace bnbx
