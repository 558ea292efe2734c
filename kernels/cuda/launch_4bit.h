// Which kernel does a product with a 4-bit weight, and its launch.
#pragma once

#include "cuda/gemm_4bit_tile.h"
#include "cuda/gemv_4bit.h"

namespace bnbx::gpu {

// In gemm_4bit.cu and gemm_4bit_transposed.cu: each serves one weight and a stack of them.
void multiply_4bit(const Product4& p, DType dtype, Stream stream);
void multiply_4bit_transposed(const Product4& p, DType dtype, Stream stream);

// Tiles of both products. Large ones decode once for 128 rows, which saves them a large table.
using LargeTile = Tile<128, 128, 64, 4, 2, 1, 4>;
using FloatTile16 = Tile<64, 16, 64, 2, 4, 1, 4>;
using FloatTile64 = Tile<64, 64, 64, 2, 4, 1, 4>;

// A multiprocessor for every block is what large tiles must offer; the H100 has 132 of them.
static constexpr int64_t kManyBlocks = 100;

// Shared memory of a block on the smallest device that has tensor cores (7.5).
static constexpr int64_t kLeastShared = 64 << 10;

// Rows that are multiplied with one weight, on average.
inline int64_t rows_per_weight(const Product4& p) {
  return p.ends == nullptr ? p.M : ceil_div(p.M, p.E);
}

// Whether a tile fits into the shared memory of the device.
template <class T, class Tile>
bool fits() {
  return TileMemory<T, Tile>::bytes(2) <= shared_limit();
}

template <class T, class Tile, bool kTransposed>
void launch_tile(Product4 p, Stream stream) {
  using Memory = TileMemory<T, Tile>;
  const int64_t rows = count_row_tiles(p, Tile::kRows);
  const int64_t blocks = rows * ceil_div(kTransposed ? p.K : p.N, Tile::kWidth);
  p.row_tiles = static_cast<uint32_t>(rows);
  p.staged = Memory::bytes(3) <= shared_limit() ? 3 : 2;
  launch(&multiply_tile<T, Tile, kTransposed>, Blocks(static_cast<unsigned>(blocks)),
         Tile::kThreads, Memory::bytes(p.staged), stream, p);
}

// The rows of A, kM of them at a time, or half as many as long as these do not fit.
template <class T, int kM>
void launch_gemv(Product4 p, Stream stream) {
  if constexpr (kM > 1) {
    if (gemv_shared_bytes<T, kM>(kGemvDepth) > shared_limit()) {
      return launch_gemv<T, kM / 2>(p, stream);
    }
  }
  // All of the rows if that leaves room for a second block.
  const int64_t all = ceil_div(p.K, kGemvDepth) * kGemvDepth;
  const bool fit = all > 0 && gemv_shared_bytes<T, kM>(all) <= shared_limit() / 2;
  p.staged = static_cast<int>(fit ? all : kGemvDepth);
  const int64_t rows = count_row_tiles(p, kM), tiles = ceil_div(p.N, kGemvWidth);
  const int64_t stride = ceil_div(kGemvBlocks, rows);
  p.row_tiles = static_cast<uint32_t>(rows);
  launch(&gemv_4bit<T, kM>, Blocks(static_cast<unsigned>(rows * (tiles < stride ? tiles : stride))),
         kGemvThreads, gemv_shared_bytes<T, kM>(p.staged), stream, p);
}

// Whether tiles of 128 x 128 keep the device busy.
inline bool is_large(const Product4& p, int64_t width) {
  return rows_per_weight(p) > 64 && ceil_div(p.M, 128) * ceil_div(width, 128) >= kManyBlocks;
}

}  // namespace bnbx::gpu
