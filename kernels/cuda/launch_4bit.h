// Which kernel does a product with a 4-bit weight, how many blocks share its depth, and its launch.
#pragma once

#include <algorithm>

#include "cuda/gemm_4bit_operands.h"
#include "cuda/gemv_4bit.h"

namespace bnbx::gpu {

// In gemm_4bit.cu and gemm_4bit_transposed.cu: each serves one weight and a stack of them.
void multiply_4bit(const Product4& p, DType dtype, Stream stream);
void multiply_4bit_transposed(const Product4& p, DType dtype, Stream stream);

// Tiles of both products. With fewer copies of its table LargeTile, whose limit is shared memory,
// would wait for the table half as long as for all else.
using LargeTile = Tile<128, 128, 64, 4, 2, 1, 16>;
using FloatTile16 = Tile<64, 16, 64, 2, 4, 1, 4>;
using FloatTile64 = Tile<64, 64, 64, 2, 4, 1, 4>;

// Tiles that decode in registers, by rows of activations. Few rows: narrow tiles, so that a weight
// of 4096 rows makes 64 blocks, and deep ones, so that each has enough bytes on their way.
using Operands8 = OperandTile<4, 1, 1, 8, 256>;
using Operands16 = OperandTile<4, 2, 1, 8, 256>;
using Operands32 = OperandTile<2, 4, 4, 2, 64>;
using Operands64 = OperandTile<2, 8, 4, 2, 64>;

// Those of 16-bit types and of float32 that fit the 48 KB of devices without tensor cores.
using SmallTile = Tile<64, 16, 128, 4, 1, 2, 4>;
static_assert(TileMemory<float16, SmallTile>::bytes(2) <= 48 << 10);
static_assert(TileMemory<float, FloatTile16>::bytes(2) <= 48 << 10);

// Shared memory of a block on the smallest device that has tensor cores (7.5).
static constexpr int64_t kLeastShared = 64 << 10;

// What the system takes of it for each block, from 8.0 on.
static constexpr int64_t kReservedShared = 1 << 10;

// Rows that are multiplied with one weight, on average.
inline int64_t rows_per_weight(const Product4& p) {
  return p.ends == nullptr ? p.M : ceil_div(p.M, p.E);
}

// Whether a tile fits into the shared memory of the device.
template <class T, class Tile>
bool fits() {
  return TileMemory<T, Tile>::bytes(2) <= shared_limit();
}

// Calls `work` with the tile of a product in float32, of either kind.
template <class Work>
void with_tile(const Product4& p, float, Work&& work) {
  const bool small = rows_per_weight(p) <= 16 || !fits<float, FloatTile64>();
  if (small) return work(FloatTile16{});
  work(FloatTile64{});
}

// Blocks of a tile that a multiprocessor has at a time: two, if shared memory has room for both.
template <class T, class Tile>
int64_t resident_blocks(int stages) {
  const int64_t blocks =
      (shared_limit() + kReservedShared) / (TileMemory<T, Tile>::bytes(stages) + kReservedShared);
  return blocks < 2 ? blocks : 2;
}

// Steps of the depth that a block of a tile has in shared memory: more than two are worth less than
// another block.
template <class T, class Tile>
int count_stages() {
  int stages = Tile::kMostStages;
  while (stages > 2 && resident_blocks<T, Tile>(stages) < resident_blocks<T, Tile>(2)) --stages;
  return stages;
}

// Blocks that share the depth of a tile of the product with one weight: as many as the device has
// at a time. A stack of weights has blocks enough, and only the device knows their depth.
template <class T, class Tile>
int64_t count_splits(const Product4& p, int64_t width, int64_t depth) {
  const int64_t blocks = ceil_div(p.M, Tile::kRows) * ceil_div(width, Tile::kWidth);
  if (p.ends != nullptr || blocks == 0) return 1;
  const int64_t room = resident_blocks<T, Tile>(count_stages<T, Tile>()) * multiprocessors();
  const int64_t most = std::min(room / blocks, depth / Tile::kLeastShare);
  if (most < 2) return 1;
  const int64_t steps = ceil_div(depth, Tile::kDepth);
  return ceil_div(steps, ceil_div(steps, most));  // none is left without a step
}

// Floats of workspace that a product wants.
template <class T, class Tile, bool kTransposed>
int64_t count_sums(const Product4& p) {
  const int64_t width = kTransposed ? p.K : p.N, depth = kTransposed ? p.N : p.K;
  const int64_t splits = count_splits<T, Tile>(p, width, depth);
  return splits == 1 ? 0 : splits * p.M * width;
}

template <class T, bool kTransposed, int... kNumbers>
constexpr auto kernel_of(Tile<kNumbers...>) {
  return &multiply_tile<T, Tile<kNumbers...>, kTransposed>;
}

template <class T, bool kTransposed, int... kNumbers>
constexpr auto kernel_of(OperandTile<kNumbers...>) {
  static_assert(!kTransposed);
  return &multiply_operands<T, OperandTile<kNumbers...>>;
}

// With p.workspace, `splits` blocks share the depth of each tile; without, one has all of it.
template <class T, class Tile, bool kTransposed>
void launch_tile(Product4 p, int64_t splits, Stream stream) {
  if (splits == 1) p.workspace = nullptr;
  if (p.workspace == nullptr) splits = 1;
  const int64_t rows = count_row_tiles(p, Tile::kRows), width = kTransposed ? p.K : p.N;
  const int64_t blocks = rows * ceil_div(width, Tile::kWidth);
  p.row_tiles = static_cast<uint32_t>(rows);
  p.staged = count_stages<T, Tile>();
  launch<kernel_of<T, kTransposed>(Tile{})>(
      Blocks(static_cast<unsigned>(blocks), static_cast<unsigned>(splits)), Tile::kThreads,
      TileMemory<T, Tile>::bytes(p.staged), stream, p);
  if (splits == 1) return;
  launch<add_splits<T>>(Blocks(static_cast<unsigned>(ceil_div(p.M * width, kAddThreads))),
                        kAddThreads, 0, stream, p, width, static_cast<int>(splits));
}

// The rows of A, kM of them at a time, or half as many as long as these do not fit.
template <class T, int kM>
void launch_gemv(Product4 p, Stream stream) {
  if constexpr (kM > 1) {
    if (gemv_shared_bytes<T, kM>(GemvShape<kM>::kDepth) > shared_limit()) {
      return launch_gemv<T, kM / 2>(p, stream);
    }
  }
  // All of the rows if that leaves room for a second block.
  constexpr int64_t kDepth = GemvShape<kM>::kDepth;
  const int64_t all = ceil_div(p.K, kDepth) * kDepth;
  const bool fit = all > 0 && gemv_shared_bytes<T, kM>(all) <= shared_limit() / 2;
  p.staged = static_cast<int>(fit ? all : kDepth);
  const int64_t rows = count_row_tiles(p, kM), tiles = ceil_div(p.N, kGemvWidth);
  const int64_t stride = ceil_div(kGemvBlocks, rows);
  p.row_tiles = static_cast<uint32_t>(rows);
  launch<gemv_4bit<T, kM>>(Blocks(static_cast<unsigned>(rows * (tiles < stride ? tiles : stride))),
                           kGemvThreads, gemv_shared_bytes<T, kM>(p.staged), stream, p);
}

// Whether tiles of 128 x 128 keep three quarters of the multiprocessors busy.
template <class T>
bool is_large(const Product4& p, int64_t width, int64_t depth) {
  const int64_t blocks = ceil_div(p.M, 128) * ceil_div(width, 128);
  return rows_per_weight(p) > 64 &&
         4 * blocks * count_splits<T, LargeTile>(p, width, depth) >= 3 * multiprocessors();
}

}  // namespace bnbx::gpu
