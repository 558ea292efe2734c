// gemm_4bit on AMX for bf16 activations: a panel of the weight is decoded into the second-level
// cache, and every 16 rows of activations are multiplied with it tile by tile.
//
// Limit: a tile product takes 16 cycles and does 16 x 16 x 32 multiply-adds; decoding 64 codes
// takes about 5. From some 50 rows on the products dominate.
#pragma once

#include <cstring>

#include "avx/amx_tiles.h"
#include "avx/decode_bf16.h"
#include "avx/parallel.h"

namespace bnbx::cpu {

static constexpr int64_t kTileElements = kTile * 32;  // bf16 values of a tile
static constexpr int64_t kMaxDepth = 256;

// How much of the weight is decoded at a time. With few rows of activations decoding dominates, and
// the panel stays in the first-level cache; with many, a large panel saves loading them again.
struct Panel {
  int64_t rows;   // a multiple of 32
  int64_t depth;  // elements of each row, a multiple of 64

  int64_t depth_groups() const { return depth / kGroup; }
  int64_t depth_tiles() const { return depth / 32; }
};

static inline Panel panel_for(const Product4& p) {
  if (p.M <= 128) return {32, kMaxDepth};
  const int64_t threads = thread_count();
  const int64_t columns = p.end - p.begin;
  const int64_t panels_per_thread = ceil_div(columns, threads * 256);
  return {ceil_div(columns, threads * panels_per_thread * 32) * 32, kMaxDepth};
}

// The activations as B tiles: [M / 16][K / 32][16 pairs][16 rows][2], split like the weight, so
// that of two consecutive tiles the first holds even and the second odd positions. Rows and
// positions beyond the last are zero.
template <class V>
static inline Workspace<bfloat16> activation_tiles(const Product4& p, int64_t groups) {
  const int64_t row_tiles = ceil_div(p.M, kTile);
  auto tiles = allocate<bfloat16>(row_tiles * groups * 2 * kTileElements);
  const auto* A = static_cast<const bfloat16*>(p.A);
  parallel_for(row_tiles * groups, ceil_div(32768, kTile * kGroup), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t m0 = i / groups * kTile, k0 = i % groups * kGroup;
      const int64_t rows = smaller(kTile, p.M - m0), depth = smaller(kGroup, p.K - k0);
      alignas(64) bfloat16 row[kGroup] = {};
      alignas(64) bfloat16 halves[2][kTile][kGroup / 2] = {};  // even and odd positions
      for (int64_t m = 0; m < rows; ++m) {
        memcpy(row, A + (m0 + m) * p.K + k0, depth * sizeof(bfloat16));
        __m512i even, odd;
        split(row, &even, &odd);
        _mm512_store_si512(halves[0][m], even);
        _mm512_store_si512(halves[1][m], odd);
      }
      for (int half = 0; half < 2; ++half) {
        __m512 pairs[kTile];
        transpose_tile(reinterpret_cast<const float*>(halves[half]), pairs);
        float* tile = reinterpret_cast<float*>(tiles.get() + (2 * i + half) * kTileElements);
        for (int pair = 0; pair < kTile; ++pair) _mm512_store_ps(tile + pair * kTile, pairs[pair]);
      }
    }
  });
  return tiles;
}

// Decodes `depth_groups` groups of one row of B into the row's place in its tiles.
template <class V>
static inline void decode_panel_row(const Product4& p, int64_t row_of_B, int64_t group,
                                    int64_t depth_groups, bfloat16* tile_row) {
  const Codebook4& book = codebook(p.quant_type);
  const __m512 values = _mm512_loadu_ps(book.values);
  if (groups_are_regular(p)) {
    const int64_t first = row_of_B * (p.K / kGroup) + group;
    float scales[kMaxDepth / kGroup];
    group_scales<V>(p.scales, first, depth_groups, scales);
    for (int64_t g = 0; g < depth_groups; ++g) {
      const __m512i table = bf16_table(values, scales[g]);
      const uint8_t* packed = p.B + (first + g) * (kGroup / 2);
      const __m512i codes = codes_of(packed);
      // What this row decodes for the next panel, which the other rows' work separates from this.
      _mm_prefetch(reinterpret_cast<const char*>(packed + depth_groups * (kGroup / 2)),
                   _MM_HINT_T1);
      bfloat16* even = tile_row + g * 2 * kTileElements;
      _mm512_store_si512(even, even_values(codes, table));
      _mm512_store_si512(even + kTileElements, odd_values(codes, table));
    }
    return;
  }
  alignas(64) bfloat16 row[kMaxDepth] = {};
  const int64_t begin = group * kGroup;
  const int64_t count = smaller(depth_groups * kGroup, p.K - begin);
  const int64_t first = row_of_B * p.K + begin;
  decode_4bit<V>(p.B, p.scales, V::table16(book.values), book.values, first, first + count, row);
  for (int64_t g = 0; g < depth_groups; ++g) {
    __m512i even, odd;
    split(row + g * kGroup, &even, &odd);
    _mm512_store_si512(tile_row + g * 2 * kTileElements, even);
    _mm512_store_si512(tile_row + g * 2 * kTileElements + kTileElements, odd);
  }
}

// C, four tiles: two tiles of weight rows times two tiles of activation rows.
static inline void multiply_2x2(const bfloat16* W0, const bfloat16* W1, const bfloat16* X0,
                                const bfloat16* X1, int64_t depth_tiles, bool first, float* C) {
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
    _tile_loadd(4, W0 + k * kTileElements, 64);
    _tile_loadd(6, X0 + k * kTileElements, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, X1 + k * kTileElements, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, W1 + k * kTileElements, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, C, 64);
  _tile_stored(1, C + 256, 64);
  _tile_stored(2, C + 512, 64);
  _tile_stored(3, C + 768, 64);
}

// The same for one tile of activation rows: C holds two tiles.
static inline void multiply_2x1(const bfloat16* W0, const bfloat16* W1, const bfloat16* X,
                                int64_t depth_tiles, bool first, float* C) {
  if (first) {
    _tile_zero(0);
    _tile_zero(2);
  } else {
    _tile_loadd(0, C, 64);
    _tile_loadd(2, C + 512, 64);
  }
  for (int64_t k = 0; k < depth_tiles; ++k) {
    _tile_loadd(6, X + k * kTileElements, 64);
    _tile_loadd(4, W0 + k * kTileElements, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, W1 + k * kTileElements, 64);
    _tile_dpbf16ps(2, 5, 6);
  }
  _tile_stored(0, C, 64);
  _tile_stored(2, C + 512, 64);
}

// Writes a tile of sums (rows are output columns) to the output, adding the bias.
static inline void write_tile(const Product4& p, const float* C, int64_t n0, int64_t m0) {
  const auto* bias = static_cast<const bfloat16*>(p.bias);
  auto* out = static_cast<bfloat16*>(p.out);
  const int64_t columns = smaller(kTile, p.end - n0);
  const auto mask = static_cast<__mmask16>((1u << columns) - 1u);
  __m512 offset = _mm512_setzero_ps();
  if (bias != nullptr) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, bias + n0);
    offset = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  __m512 rows[kTile];
  transpose_tile(C, rows);
  for (int64_t m = 0; m < smaller(kTile, p.M - m0); ++m) {
    const __m256bh row = _mm512_cvtneps_pbh(_mm512_add_ps(rows[m], offset));
    _mm256_mask_storeu_epi16(out + (m0 + m) * p.N + n0, mask, reinterpret_cast<__m256i>(row));
  }
}

template <class V>
static inline void multiply_part(const Product4& p) {
  const int64_t groups = ceil_div(p.K, kGroup);
  const auto activations = activation_tiles<V>(p, groups);
  const int64_t row_tiles = ceil_div(p.M, kTile);
  const int64_t row_pairs = ceil_div(row_tiles, 2);
  const Panel panel = panel_for(p);
  const int64_t tile_stride = panel.depth_tiles() * kTileElements;  // between two tiles of rows
  const int64_t sums_stride =
      panel.rows / 32 * 4 * kTile * kTile;  // between two pairs of row tiles
  parallel_for(ceil_div(p.end - p.begin, panel.rows), 1, [&](int64_t index, int64_t end) {
    const Tiles tiles;
    const auto decoded = allocate<bfloat16>(panel.rows * panel.depth);
    const auto sums = allocate<float>(row_pairs * sums_stride);
    memset(decoded.get(), 0, panel.rows * panel.depth * sizeof(bfloat16));
    for (; index < end; ++index) {
      const int64_t n0 = p.begin + index * panel.rows;
      const int64_t rows = smaller(panel.rows, p.end - n0);
      const int64_t pairs = ceil_div(rows, 2 * kTile);
      for (int64_t group = 0; group < groups; group += panel.depth_groups()) {
        const int64_t depth_groups = smaller(panel.depth_groups(), groups - group);
        for (int64_t r = 0; r < rows; ++r) {
          bfloat16* tile = decoded.get() + r / kTile * tile_stride;
          decode_panel_row<V>(p, p.first_row + n0 + r, group, depth_groups, tile + r % kTile * 32);
        }
        for (int64_t m = 0; m < row_pairs; ++m) {
          const bfloat16* X0 = activations.get() + (2 * m * groups + group) * 2 * kTileElements;
          const bfloat16* X1 = X0 + groups * 2 * kTileElements;
          for (int64_t n = 0; n < pairs; ++n) {
            const bfloat16* W0 = decoded.get() + 2 * n * tile_stride;
            float* C = sums.get() + m * sums_stride + n * 4 * kTile * kTile;
            if (2 * m + 1 < row_tiles) {
              multiply_2x2(W0, W0 + tile_stride, X0, X1, 2 * depth_groups, group == 0, C);
            } else {
              multiply_2x1(W0, W0 + tile_stride, X0, 2 * depth_groups, group == 0, C);
            }
          }
        }
      }
      for (int64_t m = 0; m < row_tiles; ++m) {
        for (int64_t n = 0; n < ceil_div(rows, kTile); ++n) {
          const float* C = sums.get() + m / 2 * sums_stride + n / 2 * 4 * kTile * kTile;
          write_tile(p, C + (n % 2 * 2 + m % 2) * kTile * kTile, n0 + n * kTile, m * kTile);
        }
      }
    }
  });
}

// Returns false, having done nothing, if the product is not of the kind that this kernel is for.
template <class V>
static inline bool gemm_4bit_amx(const Product4& p) {
  if (p.dtype != DType::kBFloat16 || p.M == 0 || p.N == 0 || p.K == 0) return false;
  for_parts_of_rows(p, p.K, p.N, [](const Product4& part) { multiply_part<V>(part); });
  return true;
}

}  // namespace bnbx::cpu
