// gemm_4bit_transposed on AMX for bf16: A's tiles are its rows as they lie. The weight is the other
// side, for which two of its rows are interleaved; so a tile holds 16 columns of 32 rows.
#pragma once

#include <cstring>

#include "avx/amx_tiles.h"
#include "avx/decode_bf16.h"
#include "avx/gemm_4bit_amx.h"
#include "avx/parallel.h"

namespace bnbx::cpu {

// Of a group of 64 columns, tile 0 and 1 hold those at even, tile 2 and 3 those at odd positions,
// in the order of the 128-bit lanes that interleaving leaves; write_group puts them right.
static constexpr int64_t kGroupTiles = 4;

// A as tiles of 16 rows of 32 values: [M / 16][N / 32][16][32], zeros beyond the last.
static inline Workspace<bfloat16> row_tiles_of(const Product4& p) {
  const int64_t row_tiles = ceil_div(p.M, kTile), depth_tiles = ceil_div(p.N, 32);
  auto tiles = allocate<bfloat16>((row_tiles + row_tiles % 2) * depth_tiles * kTileElements);
  const auto* A = static_cast<const bfloat16*>(p.A);
  parallel_for(row_tiles * depth_tiles, 32, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t m0 = i / depth_tiles * kTile, n0 = i % depth_tiles * 32;
      const int64_t depth = smaller(32, p.N - n0);
      bfloat16* tile = tiles.get() + i * kTileElements;
      if (depth < 32 || m0 + kTile > p.M) memset(tile, 0, kTileBytes);
      for (int64_t m = 0; m < smaller(kTile, p.M - m0); ++m) {
        memcpy(tile + m * 32, A + (m0 + m) * p.N + n0, depth * sizeof(bfloat16));
      }
    }
  });
  return tiles;
}

// Decodes rows n and n + 1 (the second may be missing: zeros) into a row of their tiles.
template <class V>
static inline void decode_row_pair(const Product4& p, int64_t n, int64_t group, int64_t groups,
                                   int64_t group_stride, bfloat16* tiles) {
  const __m512 values = _mm512_loadu_ps(codebook(p.quant_type).values);
  const int64_t row_groups = p.K / kGroup;
  const bool both = n + 1 < p.N;
  const int64_t start = (p.first_row + n) * row_groups + group;
  float scales[2][kMaxDepth / kGroup] = {};
  group_scales<V>(p.scales, start, groups, scales[0]);
  if (both) group_scales<V>(p.scales, start + row_groups, groups, scales[1]);
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* first = p.B + (start + g) * (kGroup / 2);
    const __m512i codes0 = codes_of(first);
    const __m512i table0 = bf16_table(values, scales[0][g]);
    __m512i even1 = _mm512_setzero_si512(), odd1 = even1;
    if (both) {
      const __m512i codes1 = codes_of(first + p.K / 2);
      const __m512i table1 = bf16_table(values, scales[1][g]);
      even1 = even_values(codes1, table1);
      odd1 = odd_values(codes1, table1);
    }
    const __m512i even0 = even_values(codes0, table0), odd0 = odd_values(codes0, table0);
    bfloat16* tile = tiles + g * group_stride;
    const int64_t next = group_stride / kGroupTiles;
    _mm512_store_si512(tile, _mm512_unpacklo_epi16(even0, even1));
    _mm512_store_si512(tile + next, _mm512_unpackhi_epi16(even0, even1));
    _mm512_store_si512(tile + 2 * next, _mm512_unpacklo_epi16(odd0, odd1));
    _mm512_store_si512(tile + 3 * next, _mm512_unpackhi_epi16(odd0, odd1));
  }
}

// Writes one row of a group: 64 columns from the four tiles' rows.
static inline void write_group(const float* row, int64_t tile_stride, bfloat16* out) {
  const __m512 even_low = _mm512_load_ps(row), even_high = _mm512_load_ps(row + tile_stride);
  const __m512 odd_low = _mm512_load_ps(row + 2 * tile_stride);
  const __m512 odd_high = _mm512_load_ps(row + 3 * tile_stride);
  // Lane L of these holds columns 16 L + 0..3, 4..7, 8..11 and 12..15.
  const __m512 a = _mm512_unpacklo_ps(even_low, odd_low), b = _mm512_unpackhi_ps(even_low, odd_low);
  const __m512 c = _mm512_unpacklo_ps(even_high, odd_high);
  const __m512 d = _mm512_unpackhi_ps(even_high, odd_high);
  const __m512 ab02 = _mm512_shuffle_f32x4(a, b, 0x88), ab13 = _mm512_shuffle_f32x4(a, b, 0xdd);
  const __m512 cd02 = _mm512_shuffle_f32x4(c, d, 0x88), cd13 = _mm512_shuffle_f32x4(c, d, 0xdd);
  const __m512 lanes[4] = {
      _mm512_shuffle_f32x4(ab02, cd02, 0x88), _mm512_shuffle_f32x4(ab13, cd13, 0x88),
      _mm512_shuffle_f32x4(ab02, cd02, 0xdd), _mm512_shuffle_f32x4(ab13, cd13, 0xdd)};
  for (int i = 0; i < 2; ++i) {
    const __m512bh both = _mm512_cvtne2ps_pbh(lanes[2 * i + 1], lanes[2 * i]);
    _mm512_storeu_si512(out + 32 * i, reinterpret_cast<__m512i>(both));
  }
}

template <class V>
static inline void multiply_part_transposed(const Product4& p) {
  const auto rows = row_tiles_of(p);
  const int64_t row_tiles = ceil_div(p.M, kTile), row_pairs = ceil_div(row_tiles, 2);
  const int64_t depth_tiles = ceil_div(p.N, 32);
  const int64_t first_group = p.begin / kGroup, groups = p.end / kGroup - first_group;
  const int64_t threads = thread_count();
  const int64_t most = kMaxDepth / kGroup;  // groups of columns of a panel
  const int64_t panels_per_thread = ceil_div(groups, threads * most);
  const int64_t panel_groups = ceil_div(groups, threads * panels_per_thread);
  constexpr int64_t kDepthTiles = 8;  // 256 rows of the weight decoded at a time
  constexpr int64_t kTileStride = kDepthTiles * kTileElements;
  constexpr int64_t kSums = kTile * kTile;
  parallel_for(ceil_div(groups, panel_groups), 1, [&](int64_t panel, int64_t end) {
    const Tiles tiles;
    const auto decoded = allocate<bfloat16>(panel_groups * kGroupTiles * kTileStride);
    const auto sums = allocate<float>(row_pairs * 2 * panel_groups * kGroupTiles * kSums);
    memset(decoded.get(), 0, panel_groups * kGroupTiles * kTileStride * sizeof(bfloat16));
    for (; panel < end; ++panel) {
      const int64_t count = smaller(panel_groups, groups - panel * panel_groups);
      const int64_t group = first_group + panel * panel_groups;
      for (int64_t t = 0; t < depth_tiles; t += kDepthTiles) {
        const int64_t depth = smaller(kDepthTiles, depth_tiles - t);
        for (int64_t pair = 0; pair < depth * kTile; ++pair) {
          bfloat16* tile_row = decoded.get() + pair / kTile * kTileElements + pair % kTile * 32;
          const int64_t n = t * 32 + 2 * pair;
          if (n < p.N) {
            decode_row_pair<V>(p, n, group, count, kGroupTiles * kTileStride, tile_row);
          } else {
            for (int64_t i = 0; i < count * kGroupTiles; ++i) {
              _mm512_store_si512(tile_row + i * kTileStride, _mm512_setzero_si512());
            }
          }
        }
        for (int64_t m = 0; m < row_pairs; ++m) {
          const bfloat16* A0 = rows.get() + (2 * m * depth_tiles + t) * kTileElements;
          for (int64_t c = 0; c < count * kGroupTiles; c += 2) {
            const bfloat16* W = decoded.get() + c * kTileStride;
            float* C = sums.get() + (m * panel_groups * kGroupTiles + c) * 2 * kSums;
            multiply_2x2(A0, A0 + depth_tiles * kTileElements, W, W + kTileStride, depth, t == 0,
                         C);
          }
        }
      }
      for (int64_t m = 0; m < p.M; ++m) {
        for (int64_t g = 0; g < count; ++g) {
          // A group's four tiles of sums, gathered side by side: two of each product of 2 x 2
          // tiles.
          alignas(64) float row[kGroupTiles * kTile];
          for (int64_t c = 0; c < kGroupTiles; ++c) {
            const int64_t at = m / 32 * panel_groups * kGroupTiles + g * kGroupTiles + c / 2 * 2;
            const float* tile = sums.get() + at * 2 * kSums + (m / kTile % 2 * 2 + c % 2) * kSums;
            memcpy(row + c * kTile, tile + m % kTile * kTile, kTile * sizeof(float));
          }
          write_group(row, kTile, static_cast<bfloat16*>(p.out) + m * p.K + (group + g) * kGroup);
        }
      }
    }
  });
}

// Returns false, having done nothing, if the product is not of the kind that this kernel is for.
template <class V>
static inline bool gemm_4bit_transposed_amx(const Product4& p) {
  if (p.dtype != DType::kBFloat16 || p.M == 0 || p.N == 0 || p.K == 0) return false;
  if (!groups_are_regular(p)) return false;
  for_parts_of_rows(p, p.N, p.K, [](const Product4& part) { multiply_part_transposed<V>(part); });
  return true;
}

}  // namespace bnbx::cpu
