// The int8 product on AMX: a panel of the weight is packed into tiles, and every 16 rows of
// activations are multiplied with it tile by tile. For few rows dot products read the weight
// faster.
//
// Limit: a tile product takes 16 cycles and does 16 x 16 x 64 multiply-adds.
#pragma once

#include "avx/amx_tiles.h"
#include "avx/int8_product.h"

namespace bnbx::cpu {

static constexpr int64_t kInt8Depth = 64;           // int8 values of a tile row
static constexpr int64_t kInt8PanelDepthTiles = 8;  // tiles of the depth packed at a time

// Copies 16 rows of 64 values into a tile; rows and values beyond the last are zero.
static inline void pack_tile(const int8_t* source, int64_t stride, int64_t rows, int64_t depth,
                             int8_t* tile) {
  const __mmask64 mask = depth >= 64 ? ~__mmask64{0} : (__mmask64{1} << depth) - 1;
  for (int64_t r = 0; r < kTile; ++r) {
    __m512i row = _mm512_setzero_si512();
    if (r < rows) row = _mm512_maskz_loadu_epi8(mask, source + r * stride);
    _mm512_store_si512(tile + r * 64, row);
  }
}

// The activations as B tiles: [M / 16][K / 64][16 groups of 4][16 rows][4].
static inline Workspace<int8_t> int8_activation_tiles(const int8_t* A, int64_t M, int64_t K) {
  const int64_t row_tiles = ceil_div(M, kTile), depth_tiles = ceil_div(K, kInt8Depth);
  auto tiles = allocate<int8_t>((row_tiles + row_tiles % 2) * depth_tiles * kTileBytes);
  parallel_for(row_tiles * depth_tiles, 32, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t m = i / depth_tiles * kTile, k = i % depth_tiles * kInt8Depth;
      alignas(64) int8_t block[kTileBytes];
      pack_tile(A + m * K + k, K, smaller(kTile, M - m), smaller(kInt8Depth, K - k), block);
      __m512 groups[kTile];
      transpose_tile(reinterpret_cast<const float*>(block), groups);
      float* tile = reinterpret_cast<float*>(tiles.get() + i * kTileBytes);
      for (int g = 0; g < kTile; ++g) _mm512_store_ps(tile + g * kTile, groups[g]);
    }
  });
  return tiles;
}

// C, four tiles: two tiles of weight rows times two tiles of activation rows.
static inline void multiply_int8_2x2(const int8_t* W0, const int8_t* W1, const int8_t* X0,
                                     const int8_t* X1, int64_t depth_tiles, bool first,
                                     int32_t* C) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, C, 64);
    _tile_loadd(1, C + 256, 64);
    _tile_loadd(2, C + 512, 64);
    _tile_loadd(3, C + 768, 64);
  }
  for (int64_t k = 0; k < depth_tiles; ++k) {
    _tile_loadd(4, W0 + k * kTileBytes, 64);
    _tile_loadd(6, X0 + k * kTileBytes, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, X1 + k * kTileBytes, 64);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, W1 + k * kTileBytes, 64);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, C, 64);
  _tile_stored(1, C + 256, 64);
  _tile_stored(2, C + 512, 64);
  _tile_stored(3, C + 768, 64);
}

template <class V>
struct TileProduct {
  template <class Epilogue>
  static void run(const int8_t* A, const int8_t* B, int64_t M, int64_t N, int64_t K,
                  Epilogue&& epilogue) {
    if (M <= 8 || K == 0) return DotProduct<V>::run(A, B, M, N, K, epilogue);
    const int64_t threads = thread_count();
    const int64_t panels_per_thread = ceil_div(N, threads * 256);
    const int64_t panel_rows = ceil_div(N, threads * panels_per_thread * 32) * 32;
    const auto activations = int8_activation_tiles(A, M, K);
    parallel_for(ceil_div(N, panel_rows), 1, [&](int64_t panel, int64_t end) {
      const Tiles tiles;
      const auto packed = allocate<int8_t>(panel_rows / kTile * kInt8PanelDepthTiles * kTileBytes);
      const auto sums = allocate<int32_t>(ceil_div(M, 32) * 32 * panel_rows);
      for (; panel < end; ++panel) {
        const int64_t n0 = panel * panel_rows;
        const int64_t rows = smaller(panel_rows, N - n0);
        multiply_panel(B + n0 * K, rows, activations.get(), M, K, packed.get(), sums.get(),
                       panel_rows);
        write_panel(sums.get(), n0, rows, M, panel_rows, epilogue);
      }
    });
  }

 private:
  // Sums of one panel, in groups of four tiles: [M / 32][panel_rows / 32][2 x 2 tiles].
  static void multiply_panel(const int8_t* B, int64_t rows, const int8_t* activations, int64_t M,
                             int64_t K, int8_t* packed, int32_t* sums, int64_t panel_rows) {
    const int64_t depth_tiles = ceil_div(K, kInt8Depth);
    const int64_t stride = kInt8PanelDepthTiles * kTileBytes;
    for (int64_t k = 0; k < depth_tiles; k += kInt8PanelDepthTiles) {
      const int64_t depth = smaller(kInt8PanelDepthTiles, depth_tiles - k);
      for (int64_t r = 0; r < ceil_div(rows, 32) * 32; r += kTile) {
        for (int64_t d = 0; d < depth; ++d) {
          const int64_t at = (k + d) * kInt8Depth;
          pack_tile(B + r * K + at, K, rows - r, smaller(kInt8Depth, K - at),
                    packed + r / kTile * stride + d * kTileBytes);
        }
      }
      for (int64_t m = 0; m < ceil_div(M, 32); ++m) {
        const int8_t* X = activations + (2 * m * depth_tiles + k) * kTileBytes;
        for (int64_t n = 0; n < ceil_div(rows, 32); ++n) {
          multiply_int8_2x2(packed + 2 * n * stride, packed + (2 * n + 1) * stride, X,
                            X + depth_tiles * kTileBytes, depth, k == 0,
                            sums + (m * panel_rows / 32 + n) * 4 * kTile * kTile);
        }
      }
    }
  }

  template <class Epilogue>
  static void write_panel(const int32_t* sums, int64_t n0, int64_t rows, int64_t M,
                          int64_t panel_rows, const Epilogue& epilogue) {
    for (int64_t m = 0; m < M; m += kTile) {
      for (int64_t n = 0; n < rows; n += kTile) {
        const int64_t group = m / 32 * (panel_rows / 32) + n / 32;
        const int64_t tile = group * 4 + n / kTile % 2 * 2 + m / kTile % 2;
        alignas(64) float columns[kTile * kTile];  // the bits of int32, in the output's order
        __m512 transposed[kTile];
        transpose_tile(reinterpret_cast<const float*>(sums + tile * kTile * kTile), transposed);
        for (int i = 0; i < kTile; ++i) _mm512_store_ps(columns + i * kTile, transposed[i]);
        for (int64_t i = 0; i < smaller(kTile, M - m); ++i) {
          int32_t run[kTile];
          memcpy(run, columns + i * kTile, sizeof(run));
          epilogue(m + i, n0 + n, smaller(kTile, rows - n), run);
        }
      }
    }
  }
};

}  // namespace bnbx::cpu
