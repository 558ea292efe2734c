// gemm_4bit and gemm_4bit_transposed for bf16 activations with bfmmla, which multiplies two rows by
// two rows, four values of each, in one instruction: four times the products of a float32 vector. A
// panel of the weight is decoded to bf16 and laid in pairs, four values of the one row (of the
// transposed product: column) and four of the other. It serves all rows of activations, which lie
// in pairs as well.
//
// bfmmla rounds a sum of two products, and adds it, to odd; numbers below the normal ones are zero.
#pragma once

#include <arm_neon.h>

#include "avx/groups_4bit.h"
#include "avx/parallel.h"
#include "avx/workspace.h"

namespace bnbx::cpu {

static constexpr int64_t kPanelColumns = 64;  // of the output
static constexpr int64_t kPanelDepth = 256;   // with the columns: 32 KiB, of the first-level cache
static constexpr int64_t kQuad = 4;           // values of a row that one instruction takes
// Where the panel has its next pair, in values.
static constexpr int64_t kPanelStride = 2 * kPanelDepth;
static constexpr int kBf16Pairs = 4;  // on either side of a tile: 16 of 32 registers hold sums
// Values of the depth are laid in whole vectors of two quads; those beyond the last are zero.
static constexpr int64_t kVector = 8;

// The 16 values times a scale in bf16, as two tables of bytes.
struct Bf16Bytes {
  uint8x16_t low, high;
};

static inline Bf16Bytes bf16_bytes(const float* values, float scale) {
  uint8x16_t halves[2];
  for (int i = 0; i < 2; ++i) {
    const float32x4_t first = vmulq_n_f32(vld1q_f32(values + 8 * i), scale);
    const float32x4_t second = vmulq_n_f32(vld1q_f32(values + 8 * i + 4), scale);
    halves[i] = vreinterpretq_u8_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(first), second));
  }
  return {vuzp1q_u8(halves[0], halves[1]), vuzp2q_u8(halves[0], halves[1])};
}

static inline void decode_16(uint8x16_t codes, const Bf16Bytes& table, bfloat16* out) {
  const uint8x16_t low = vqtbl1q_u8(table.low, codes), high = vqtbl1q_u8(table.high, codes);
  vst1q_u16(&out->bits, vreinterpretq_u16_u8(vzip1q_u8(low, high)));
  vst1q_u16(&out[8].bits, vreinterpretq_u16_u8(vzip2q_u8(low, high)));
}

// Decodes `count` elements of the weight from `first` on; at most kPanelDepth. Elements up to the
// next whole vector become zero.
template <class V>
static inline void decode_bf16(const Product4& p, int64_t first, int64_t count, bfloat16* out) {
  const Codebook4& book = codebook(p.quant_type);
  if (!groups_are_regular(p)) {
    decode_4bit<V>(p.B, p.scales, V::table16(book.values), book.values, first, first + count, out);
    for (int64_t i = count; i % kVector != 0; ++i) out[i].bits = 0;
    return;
  }
  static_assert(V::kWidth >= kPanelDepth / kGroup);
  float scales[V::kWidth];  // a whole vector: g++ warns that it might be stored
  group_scales<V>(p.scales, first / kGroup, count / kGroup, scales);
  const uint8_t* packed = p.B + first / 2;
  for (int64_t g = 0; g < count / kGroup; ++g) {
    const Bf16Bytes table = bf16_bytes(book.values, scales[g]);
    for (int64_t i = 0; i < kGroup; i += 32, packed += 16, out += 32) {
      const uint8x16_t codes = vld1q_u8(packed);
      const uint8x16_t even = vshrq_n_u8(codes, 4), odd = vandq_u8(codes, vdupq_n_u8(15));
      decode_16(vzip1q_u8(even, odd), table, out);
      decode_16(vzip2q_u8(even, odd), table, out + 16);
    }
  }
}

// Lays `vectors` vectors of two rows in pairs of quads.
static inline void pack_bf16_pair(const bfloat16* first, const bfloat16* second, int64_t vectors,
                                  bfloat16* out) {
  for (int64_t i = 0; i < vectors; ++i) {
    const uint16x8_t a = vld1q_u16(&first[i * kVector].bits);
    const uint16x8_t b = vld1q_u16(&second[i * kVector].bits);
    vst1q_u16(&out[2 * i * kVector].bits, vcombine_u16(vget_low_u16(a), vget_low_u16(b)));
    vst1q_u16(&out[(2 * i + 1) * kVector].bits, vcombine_u16(vget_high_u16(a), vget_high_u16(b)));
  }
}

// The activations, (p.M, depth), in pairs: [ceil(M / 2)][depth / 4][2 rows][4].
static inline Workspace<bfloat16> bf16_pairs(const Product4& p, int64_t depth) {
  const int64_t pairs = ceil_div(p.M, 2), vectors = ceil_div(depth, kVector);
  const int64_t whole = depth / kVector, rest = depth % kVector;
  auto out = allocate<bfloat16>(pairs * vectors * 2 * kVector);
  const auto* A = static_cast<const bfloat16*>(p.A);
  parallel_for(pairs, ceil_div(32768, depth + 1), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const bfloat16* first = A + 2 * i * depth;
      const bfloat16* second = 2 * i + 1 < p.M ? first + depth : first;
      bfloat16* pair = out.get() + i * vectors * 2 * kVector;
      pack_bf16_pair(first, second, whole, pair);
      if (rest == 0) continue;
      bfloat16 ends[2][kVector] = {};
      memcpy(ends[0], first + whole * kVector, rest * sizeof(bfloat16));
      memcpy(ends[1], second + whole * kVector, rest * sizeof(bfloat16));
      pack_bf16_pair(ends[0], ends[1], 1, pair + whole * 2 * kVector);
    }
  });
  return out;
}

// Rows n0 on of the weight, as columns of the output; their elements from k0 on are the depth.
template <class V>
static inline void fill_from_rows(const Product4& p, int64_t n0, int64_t columns, int64_t k0,
                                  int64_t depth, bfloat16* panel) {
  alignas(64) bfloat16 rows[2][kPanelDepth];
  for (int64_t n = 0; n < columns; n += 2, panel += kPanelStride) {
    const int64_t first = (p.first_row + n0 + n) * p.K + k0;
    const bool both = n + 1 < columns;
    decode_bf16<V>(p, first, depth, rows[0]);
    if (both) decode_bf16<V>(p, first + p.K, depth, rows[1]);
    pack_bf16_pair(rows[0], rows[both ? 1 : 0], ceil_div(depth, kVector), panel);
  }
}

// The same of the transposed product: the depth is rows n0 on, the columns are elements k0 on.
template <class V>
static inline void fill_from_columns(const Product4& p, int64_t k0, int64_t columns, int64_t n0,
                                     int64_t depth, bfloat16* panel) {
  alignas(64) bfloat16 rows[kQuad][kPanelColumns];
  for (int64_t n = 0; n < ceil_div(depth, kVector) * kVector; n += kQuad, panel += 2 * kQuad) {
    for (int64_t r = 0; r < kQuad; ++r) {
      const int64_t first = (p.first_row + n0 + n + r) * p.K + k0;
      if (n + r < depth) decode_bf16<V>(p, first, columns, rows[r]);
      if (n + r >= depth) memset(rows[r], 0, sizeof(rows[r]));
    }
    for (int64_t k = 0; k < columns; k += kVector) {
      uint16x8_t r[kQuad];
      for (int i = 0; i < kQuad; ++i) r[i] = vld1q_u16(&rows[i][k].bits);
      bfloat16* out = panel + k / 2 * kPanelStride;
      const uint16x8_t even_low = vzip1q_u16(r[0], r[2]), odd_low = vzip1q_u16(r[1], r[3]);
      const uint16x8_t even_high = vzip2q_u16(r[0], r[2]), odd_high = vzip2q_u16(r[1], r[3]);
      vst1q_u16(&out->bits, vzip1q_u16(even_low, odd_low));
      vst1q_u16(&out[kPanelStride].bits, vzip2q_u16(even_low, odd_low));
      vst1q_u16(&out[2 * kPanelStride].bits, vzip1q_u16(even_high, odd_high));
      vst1q_u16(&out[3 * kPanelStride].bits, vzip2q_u16(even_high, odd_high));
    }
  }
}

static inline bfloat16x8_t load_bf16(const bfloat16* p) {
  return vreinterpretq_bf16_u16(vld1q_u16(&p->bits));
}

// Adds kRowPairs pairs of rows of A times kBf16Pairs pairs of the panel to blocks of two by two
// sums; a pair of rows has kPanelColumns / 2 blocks.
template <int kRowPairs>
static inline void multiply_bf16_pairs(const bfloat16* A, int64_t A_stride, const bfloat16* panel,
                                       int64_t quads, float* sums) {
  float32x4_t acc[kRowPairs][kBf16Pairs];
  for (int r = 0; r < kRowPairs; ++r) {
    for (int c = 0; c < kBf16Pairs; ++c) {
      acc[r][c] = vld1q_f32(sums + 2 * r * kPanelColumns + 4 * c);
    }
  }
  for (int64_t q = 0; q < quads; ++q) {
    bfloat16x8_t b[kBf16Pairs];
    for (int c = 0; c < kBf16Pairs; ++c) b[c] = load_bf16(panel + c * kPanelStride + q * 2 * kQuad);
    for (int r = 0; r < kRowPairs; ++r) {
      const bfloat16x8_t a = load_bf16(A + r * A_stride + q * 2 * kQuad);
      for (int c = 0; c < kBf16Pairs; ++c) acc[r][c] = vbfmmlaq_f32(acc[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < kRowPairs; ++r) {
    for (int c = 0; c < kBf16Pairs; ++c) {
      vst1q_f32(sums + 2 * r * kPanelColumns + 4 * c, acc[r][c]);
    }
  }
}

// Adds `row_pairs` pairs of rows of A times a panel of `column_pairs` pairs to the sums.
static inline void multiply_panel(const bfloat16* A, int64_t row_pairs, int64_t A_stride,
                                  const bfloat16* panel, int64_t column_pairs, int64_t quads,
                                  float* sums) {
  for (int64_t m = 0; m < row_pairs; m += kBf16Pairs) {
    const bfloat16* a = A + m * A_stride;
    for (int64_t c = 0; c < column_pairs; c += kBf16Pairs) {
      const bfloat16* b = panel + c * kPanelStride;
      float* out = sums + 2 * m * kPanelColumns + 4 * c;
      switch (smaller(kBf16Pairs, row_pairs - m)) {
        case 1: multiply_bf16_pairs<1>(a, A_stride, b, quads, out); break;
        case 2: multiply_bf16_pairs<2>(a, A_stride, b, quads, out); break;
        case 3: multiply_bf16_pairs<3>(a, A_stride, b, quads, out); break;
        default: multiply_bf16_pairs<4>(a, A_stride, b, quads, out);
      }
    }
  }
}

// Writes the sums of columns c0 on, plus the bias, to the output, whose rows are `width` long.
template <class V>
static inline void write_columns(const Product4& p, const float* sums, int64_t c0, int64_t columns,
                                 int64_t width) {
  const auto* bias = static_cast<const bfloat16*>(p.bias);
  alignas(64) float offsets[kPanelColumns] = {};
  for (int64_t c = 0; bias != nullptr && c < columns; ++c) offsets[c] = to_float(bias[c0 + c]);
  for (int64_t m = 0; m < p.M; ++m) {
    const float* blocks = sums + m / 2 * 2 * kPanelColumns + m % 2 * 2;
    alignas(64) float row[kPanelColumns];
    for (int64_t c = 0; c < kPanelColumns; c += 2) vst1_f32(row + c, vld1_f32(blocks + 2 * c));
    auto* out = static_cast<bfloat16*>(p.out) + m * width + c0;
    sweep<V>(columns, [&](int64_t c, auto lanes) {
      store<V>(out + c, V::load(row + c) + V::load(offsets + c), lanes);
    });
  }
}

// The output's columns p.begin to p.end; fill(p, column, columns, k, depth, panel) decodes a panel.
template <class V, class Fill>
static inline void multiply_with_panels(const Product4& p, int64_t depth, int64_t width,
                                        Fill&& fill) {
  const auto activations = bf16_pairs(p, depth);
  const int64_t row_pairs = ceil_div(p.M, 2), A_stride = ceil_div(depth, kVector) * 2 * kVector;
  const int64_t grain = ceil_div(65536, kPanelColumns * (depth + 1));
  parallel_for(ceil_div(p.end - p.begin, kPanelColumns), grain, [&](int64_t i, int64_t end) {
    const auto panel = allocate<bfloat16>(kPanelColumns * kPanelDepth);
    const auto sums = allocate<float>(row_pairs * 2 * kPanelColumns);
    memset(panel.get(), 0, kPanelColumns * kPanelDepth * sizeof(bfloat16));
    for (; i < end; ++i) {
      const int64_t c0 = p.begin + i * kPanelColumns;
      const int64_t columns = smaller(kPanelColumns, p.end - c0);
      memset(sums.get(), 0, row_pairs * 2 * kPanelColumns * sizeof(float));
      for (int64_t d = 0; d < depth; d += kPanelDepth) {
        const int64_t part = smaller(kPanelDepth, depth - d);
        fill(p, c0, columns, d, part, panel.get());
        multiply_panel(activations.get() + 2 * d, row_pairs, A_stride, panel.get(),
                       ceil_div(columns, 2), ceil_div(part, kVector) * 2, sums.get());
      }
      write_columns<V>(p, sums.get(), c0, columns, width);
    }
  });
}

// These return false, having done nothing, if the product is not of the kind that they are for.
static inline bool is_for_mmla(const Product4& p) {
  return p.dtype == DType::kBFloat16 && p.M > 0 && p.N > 0 && p.K > 0;
}

template <class V>
static inline bool gemm_4bit_mmla(const Product4& p) {
  if (!is_for_mmla(p)) return false;
  for_parts_of_rows(p, p.K, p.N, [](const Product4& part) {
    multiply_with_panels<V>(part, part.K, part.N, fill_from_rows<V>);
  });
  return true;
}

template <class V>
static inline bool gemm_4bit_transposed_mmla(const Product4& p) {
  if (!is_for_mmla(p)) return false;
  for_parts_of_rows(p, p.N, p.K, [](const Product4& part) {
    multiply_with_panels<V>(part, part.N, part.K, fill_from_columns<V>);
  });
  return true;
}

}  // namespace bnbx::cpu
