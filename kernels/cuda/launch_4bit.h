// Which kernel does a product with a 4-bit weight, and its launch.
#pragma once

#include "cuda/gemm_4bit_tile.h"
#include "cuda/gemv_4bit.h"

namespace bnbx::gpu {

// In gemm_4bit.cu and gemm_4bit_transposed.cu: each serves one weight and a stack of them.
void multiply_4bit(const Product4& p, DType dtype, Stream stream);
void multiply_4bit_transposed(const Product4& p, DType dtype, Stream stream);

// A multiprocessor for every block is what large tiles must offer; the H100 has 132 of them.
static constexpr int64_t kManyBlocks = 100;

// Rows that are multiplied with one weight, on average.
inline int64_t rows_per_weight(const Product4& p) {
  return p.ends == nullptr ? p.M : ceil_div(p.M, p.E);
}

template <class T, class Tile, bool kTransposed>
void launch_tile(Product4 p, Stream stream) {
  const int64_t rows = count_row_tiles(p, Tile::kRows);
  const int64_t blocks = rows * ceil_div(kTransposed ? p.K : p.N, Tile::kWidth);
  p.row_tiles = static_cast<uint32_t>(rows);
  launch(&multiply_tile<T, Tile, kTransposed>, Blocks(static_cast<unsigned>(blocks)),
         Tile::kThreads, TileMemory<T, Tile>::kBytes, stream, p);
}

template <class T, int kM>
void launch_gemv(Product4 p, Stream stream) {
  const int64_t rows = count_row_tiles(p, kM);
  p.row_tiles = static_cast<uint32_t>(rows);
  launch(&gemv_4bit<T, kM>, Blocks(static_cast<unsigned>(rows * ceil_div(p.N, kGemvWidth))),
         kGemvThreads, gemv_shared_bytes<T, kM>(), stream, p);
}

// Whether tiles of 128 x 128 keep the device busy.
inline bool is_large(const Product4& p, int64_t width) {
  return rows_per_weight(p) > 64 && ceil_div(p.M, 128) * ceil_div(width, 128) >= kManyBlocks;
}

}  // namespace bnbx::gpu
