// gemm_4bit on AMX for bf16 activations: a panel of the weight is decoded into the second-level
// cache, and every 16 rows of activations are multiplied with it tile by tile.
//
// Limit: a tile product takes 16 cycles and does 16 x 16 x 32 multiply-adds; decoding 64 codes takes
// about 5. From some 50 rows on the products dominate.
#pragma once

#include <cstring>

#include "avx/amx_tiles.h"
#include "avx/decode_bf16.h"
#include "avx/parallel.h"

namespace bnbx::cpu {

static constexpr int64_t kPanelRows = 64;   // rows of the weight decoded at a time
static constexpr int64_t kPanelDepth = 512;  // of each row, this many elements
static constexpr int64_t kDepthTiles = kPanelDepth / 32;
static constexpr int64_t kTileElements = kTile * 32;  // bf16 values of a tile

// The activations as B tiles: [M / 16][K / 32][16 pairs][16 rows][2], split like the weight, so that
// of two consecutive tiles the first holds even and the second odd positions. Rows and positions
// beyond the last are zero.
template <class V>
static inline Aligned<bfloat16> activation_tiles(const Product4& p, int64_t groups) {
  const int64_t row_tiles = ceil_div(p.M, kTile);
  auto tiles = allocate<bfloat16>(row_tiles * groups * 2 * kTileElements);
  const auto* A = static_cast<const bfloat16*>(p.A);
  parallel_for(row_tiles * groups, ceil_div(32768, kTile * kGroup), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t m0 = i / groups * kTile, k0 = i % groups * kGroup;
      const int64_t rows = smaller(kTile, p.M - m0), depth = smaller(kGroup, p.K - k0);
      alignas(64) bfloat16 block[kTile][kGroup];
      if (rows < kTile || depth < kGroup) memset(block, 0, sizeof(block));
      for (int64_t m = 0; m < rows; ++m) {
        memcpy(block[m], A + (m0 + m) * p.K + k0, depth * sizeof(bfloat16));
      }
      bfloat16* even = tiles.get() + i * 2 * kTileElements;
      // Four consecutive values of a row make one pair of even and one of odd positions.
      const __m512i rows_at = _mm512_setr_epi64(0, 16, 32, 48, 64, 80, 96, 112);
      const __m512i pairs = _mm512_set1_epi64(0x0706030205040100);
      const __m512i in_order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,
                                                 28, 30);
      for (int64_t pair = 0; pair < kTile; ++pair) {
        const auto* base = reinterpret_cast<const int64_t*>(&block[0][4 * pair]);
        __m512i low = _mm512_i64gather_epi64(rows_at, base, 8);
        __m512i high = _mm512_i64gather_epi64(rows_at, base + 8 * 16, 8);
        const __m512i lane = _mm512_set_epi64(0x0808080808080808, 0, 0x0808080808080808, 0,
                                              0x0808080808080808, 0, 0x0808080808080808, 0);
        low = _mm512_shuffle_epi8(low, _mm512_add_epi8(pairs, lane));
        high = _mm512_shuffle_epi8(high, _mm512_add_epi8(pairs, lane));
        const __m512i odd_order = _mm512_add_epi32(in_order, _mm512_set1_epi32(1));
        _mm512_store_si512(even + pair * 32, _mm512_permutex2var_epi32(low, in_order, high));
        _mm512_store_si512(even + kTileElements + pair * 32,
                           _mm512_permutex2var_epi32(low, odd_order, high));
      }
    }
  });
  return tiles;
}

// Decodes `depth_groups` groups of one row into the row's place in its tiles.
template <class V>
static inline void decode_panel_row(const Product4& p, int64_t n, int64_t group,
                                    int64_t depth_groups, bfloat16* tile_row) {
  const Codebook4& book = codebook(p.quant_type);
  const __m512 values = _mm512_loadu_ps(book.values);
  if (groups_are_regular(p)) {
    const int64_t first = n * (p.K / kGroup) + group;
    float scales[kPanelDepth / kGroup];
    group_scales<V>(p.scales, first, depth_groups, scales);
    for (int64_t g = 0; g < depth_groups; ++g) {
      const __m512i table = bf16_table(values, scales[g]);
      const __m512i codes = codes_of(p.B + (first + g) * (kGroup / 2));
      bfloat16* even = tile_row + g * 2 * kTileElements;
      _mm512_store_si512(even, even_values(codes, table));
      _mm512_store_si512(even + kTileElements, odd_values(codes, table));
    }
    return;
  }
  alignas(64) bfloat16 row[kPanelDepth] = {};
  const int64_t begin = group * kGroup;
  const int64_t count = smaller(depth_groups * kGroup, p.K - begin);
  decode_4bit<V>(p.B, p.scales, V::table16(book.values), book.values, n * p.K + begin,
                 n * p.K + begin + count, row);
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
  const int64_t columns = smaller(kTile, p.N - n0);
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

// Returns false, having done nothing, if the product is not of the kind that this kernel is for.
template <class V>
static inline bool gemm_4bit_amx(const Product4& p) {
  if (p.dtype != DType::kBFloat16 || p.M == 0 || p.N == 0 || p.K == 0) return false;
  const int64_t groups = ceil_div(p.K, kGroup);
  const auto activations = activation_tiles<V>(p, groups);
  const int64_t row_tiles = ceil_div(p.M, kTile);
  const int64_t row_pairs = ceil_div(row_tiles, 2);
  const int64_t panels = ceil_div(p.N, kPanelRows);
  parallel_for(panels, ceil_div(16384, kPanelRows * p.K), [&](int64_t panel, int64_t end) {
    const Tiles tiles;
    const auto decoded = allocate<bfloat16>(kPanelRows * kPanelDepth);
    const auto sums = allocate<float>(row_pairs * kPanelRows * 2 * kTile);
    memset(decoded.get(), 0, kPanelRows * kPanelDepth * sizeof(bfloat16));
    for (; panel < end; ++panel) {
      const int64_t n0 = panel * kPanelRows;
      const int64_t pairs = ceil_div(smaller(kPanelRows, p.N - n0), 2 * kTile);
      for (int64_t group = 0; group < groups; group += kPanelDepth / kGroup) {
        const int64_t depth_groups = smaller(kPanelDepth / kGroup, groups - group);
        for (int64_t r = 0; r < smaller(kPanelRows, p.N - n0); ++r) {
          bfloat16* tile = decoded.get() + r / kTile * kDepthTiles * kTileElements;
          decode_panel_row<V>(p, n0 + r, group, depth_groups, tile + r % kTile * 32);
        }
        for (int64_t m = 0; m < row_pairs; ++m) {
          const bfloat16* X0 =
              activations.get() + (2 * m * groups + group) * 2 * kTileElements;
          const bfloat16* X1 = X0 + groups * 2 * kTileElements;
          for (int64_t n = 0; n < pairs; ++n) {
            const bfloat16* W0 = decoded.get() + 2 * n * kDepthTiles * kTileElements;
            const bfloat16* W1 = W0 + kDepthTiles * kTileElements;
            float* C = sums.get() + (m * kPanelRows / 32 + n) * 4 * kTile * kTile;
            if (2 * m + 1 < row_tiles) {
              multiply_2x2(W0, W1, X0, X1, 2 * depth_groups, group == 0, C);
            } else {
              multiply_2x1(W0, W1, X0, 2 * depth_groups, group == 0, C);
            }
          }
        }
      }
      for (int64_t tile = 0; tile < row_pairs * pairs * 4; ++tile) {
        const int64_t m = 2 * (tile / (4 * pairs)) + tile % 2;
        const int64_t n = tile / 2 % (2 * pairs);
        if (m >= row_tiles || n0 + n * kTile >= p.N) continue;
        const float* C =
            sums.get() + (m / 2 * kPanelRows / 32 + n / 2) * 4 * kTile * kTile;
        write_tile(p, C + (n % 2 * 2 + m % 2) * kTile * kTile, n0 + n * kTile, m * kTile);
      }
    }
  });
  return true;
}

}  // namespace bnbx::cpu
