// AMX: a product C (16 x 16 floats or int32) += A (16 rows of 64 bytes) times B (16 rows of 64
// bytes). Here the weight is A, its rows as they lie, and the activations are B, four bytes of a
// row of activations to a tile row; so C is a transposed tile of the output: its rows are output
// columns.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bnbx::cpu {

static constexpr int64_t kTile = 16;         // rows of a tile, and columns of 4 bytes
static constexpr int64_t kTileBytes = 1024;  // 16 rows of 64 bytes

// The tile registers of a thread, all of full size, while this object lives.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Row i of the result holds entry i of each of the 16 rows at `tile`.
static inline void transpose_tile(const float* tile, __m512* rows) {
  __m512 t[16], u[16];
  for (int i = 0; i < 16; ++i) t[i] = _mm512_load_ps(tile + 16 * i);
  for (int i = 0; i < 8; ++i) {
    u[2 * i] = _mm512_unpacklo_ps(t[2 * i], t[2 * i + 1]);
    u[2 * i + 1] = _mm512_unpackhi_ps(t[2 * i], t[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(u[4 * i]), b = _mm512_castps_pd(u[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(u[4 * i + 2]), d = _mm512_castps_pd(u[4 * i + 3]);
    t[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    t[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    t[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    t[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; ++i) {  // now the 4x4 transpose of the 128-bit lanes
    const __m512 a = _mm512_shuffle_f32x4(t[i], t[4 + i], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(t[i], t[4 + i], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0xdd);
    rows[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    rows[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
    rows[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
    rows[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

}  // namespace bnbx::cpu
