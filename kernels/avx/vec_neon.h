// The vector vocabulary on the Advanced SIMD (NEON) of every 64-bit Arm processor. vec_scalar.h
// says what each word means. A vector of eight lanes is two registers.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "common/types.h"

namespace bnbx {
namespace neon {

struct F32 {
  float32x4_t low, high;
  F32() = default;
  F32(float32x4_t l, float32x4_t h) : low(l), high(h) {}
  explicit F32(float x) : low(vdupq_n_f32(x)), high(low) {}
};

struct I32 {
  int32x4_t low, high;
  I32() = default;
  I32(int32x4_t l, int32x4_t h) : low(l), high(h) {}
  I32(uint32x4_t l, uint32x4_t h) : low(vreinterpretq_s32_u32(l)), high(vreinterpretq_s32_u32(h)) {}
  explicit I32(int32_t x) : low(vdupq_n_s32(x)), high(low) {}
};

static inline F32 operator+(F32 a, F32 b) {
  return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
static inline F32 operator-(F32 a, F32 b) {
  return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
static inline F32 operator*(F32 a, F32 b) {
  return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
static inline F32 operator/(F32 a, F32 b) {
  return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
}
static inline I32 operator+(I32 a, I32 b) {
  return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)};
}
static inline I32 operator-(I32 a, I32 b) {
  return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)};
}
static inline I32 operator|(I32 a, I32 b) {
  return {vorrq_s32(a.low, b.low), vorrq_s32(a.high, b.high)};
}
static inline I32 operator&(I32 a, I32 b) {
  return {vandq_s32(a.low, b.low), vandq_s32(a.high, b.high)};
}
static inline I32 operator^(I32 a, I32 b) {
  return {veorq_s32(a.low, b.low), veorq_s32(a.high, b.high)};
}
static inline I32 operator*(I32 a, I32 b) {
  return {vmulq_s32(a.low, b.low), vmulq_s32(a.high, b.high)};
}
template <int kShift>
static inline I32 shift_right_logical(I32 a) {
  return {vshrq_n_u32(vreinterpretq_u32_s32(a.low), kShift),
          vshrq_n_u32(vreinterpretq_u32_s32(a.high), kShift)};
}
static inline F32 sqrt(F32 a) { return {vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }

static inline float32x4_t sign(float32x4_t a) {
  const float32x4_t one = vbslq_f32(vdupq_n_u32(0x80000000u), a, vdupq_n_f32(1.0f));
  return vbslq_f32(vcgtq_f32(vabsq_f32(a), vdupq_n_f32(0.0f)), one, a);
}
static inline F32 sign(F32 a) { return {sign(a.low), sign(a.high)}; }

// `Isa` only gives the functions a name of their own for each file that is compiled with other
// flags.
template <class Isa>
struct Vec {
  using F32 = neon::F32;
  using Fused = F32;
  using I32 = neon::I32;
  static constexpr int kWidth = 8;
  // With four rows of B: 16 of the 32 registers for sums, 8 for B, 2 for A.
  static constexpr int kTileRows = 2;

  // The bytes of the 16 floats: one instruction looks up 16 bytes in four registers.
  struct Table16 {
    uint8x16x4_t bytes;
  };
  static Table16 table16(const float* entries) {
    Table16 table;
    for (int i = 0; i < 4; ++i) {
      table.bytes.val[i] = vreinterpretq_u8_f32(vld1q_f32(entries + 4 * i));
    }
    return table;
  }
  static F32 lookup(const Table16& table, I32 index) {
    return {lookup4(table, index.low), lookup4(table, index.high)};
  }

  static F32 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static F32 load(const bfloat16* p) {
    const uint16x8_t x = vld1q_u16(&p->bits);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(x), 16))};
  }
  static F32 load(const float16* p) {
    const uint16x8_t x = vld1q_u16(&p->bits);
    return {vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(x))),
            vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(x)))};
  }
  static void store(float* p, F32 a) {
    vst1q_f32(p, a.low);
    vst1q_f32(p + 4, a.high);
  }
  static void store(bfloat16* p, F32 a) {
    vst1q_u16(&p->bits, vcombine_u16(to_bfloat16(a.low), to_bfloat16(a.high)));
  }
  static void store(float16* p, F32 a) {
    vst1q_u16(&p->bits, vcombine_u16(vreinterpret_u16_f16(vcvt_f16_f32(a.low)),
                                     vreinterpret_u16_f16(vcvt_f16_f32(a.high))));
  }

  static I32 load_nibbles(const uint8_t* p) {
    uint32_t packed;
    memcpy(&packed, p, 4);
    const uint32x4_t all = vdupq_n_u32(packed), mask = vdupq_n_u32(15);
    return {vandq_u32(vshlq_u32(all, vnegq_s32(places(0))), mask),
            vandq_u32(vshlq_u32(all, vnegq_s32(places(16))), mask)};
  }
  static void store_nibbles(uint8_t* p, I32 a) {
    // Each code goes to its place in the 32-bit word; no two meet, so a sum puts them together.
    const int32x4_t placed = vorrq_s32(vshlq_s32(a.low, places(0)), vshlq_s32(a.high, places(16)));
    const int32_t packed = vaddvq_s32(placed);
    memcpy(p, &packed, 4);
  }

  static I32 load_bytes(const uint8_t* p) {
    const uint16x8_t wide = vmovl_u8(vld1_u8(p));
    return {vmovl_u16(vget_low_u16(wide)), vmovl_u16(vget_high_u16(wide))};
  }
  static void store_bytes(uint8_t* p, I32 a) {
    const int16x8_t words = vcombine_s16(vmovn_s32(a.low), vmovn_s32(a.high));
    vst1_u8(p, vreinterpret_u8_s8(vmovn_s16(words)));
  }
  static void store_bytes(uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    store_bytes(p, a);
    store_bytes(p + 8, b);
    store_bytes(p + 16, c);
    store_bytes(p + 24, d);
  }
  static void store_rounded(int8_t* p, F32 a) {
    store_bytes(reinterpret_cast<uint8_t*>(p), I32(vcvtnq_s32_f32(a.low), vcvtnq_s32_f32(a.high)));
  }
  static F32 from_int32(const int32_t* p) {
    return {vcvtq_f32_s32(vld1q_s32(p)), vcvtq_f32_s32(vld1q_s32(p + 4))};
  }
  static F32 from_int8(const int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)))};
  }

  static F32 gather(const float* base, I32 index) {
    return {gather4(base, index.low), gather4(base, index.high)};
  }
  static I32 gather(const int32_t* base, I32 index) {
    return {gather4(base, index.low), gather4(base, index.high)};
  }

  static F32 fma(F32 a, F32 b, F32 c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static I32 bits(F32 a) { return {vreinterpretq_s32_f32(a.low), vreinterpretq_s32_f32(a.high)}; }
  static I32 abs_bits(F32 a) {
    return {vreinterpretq_s32_f32(vabsq_f32(a.low)), vreinterpretq_s32_f32(vabsq_f32(a.high))};
  }
  static F32 from_bits(I32 a) {
    return {vreinterpretq_f32_s32(a.low), vreinterpretq_f32_s32(a.high)};
  }
  static I32 max(I32 a, I32 b) { return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)}; }
  static I32 min(I32 a, I32 b) { return {vminq_s32(a.low, b.low), vminq_s32(a.high, b.high)}; }
  template <int kShift>
  static I32 shift_right(I32 a) {
    return {vshrq_n_s32(a.low, kShift), vshrq_n_s32(a.high, kShift)};
  }
  static I32 where_greater(F32 a, F32 b, int32_t value) {
    return I32(vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high)) & I32(value);
  }
  static I32 where_greater(I32 a, I32 b, int32_t value) {
    return I32(vcgtq_s32(a.low, b.low), vcgtq_s32(a.high, b.high)) & I32(value);
  }
  static F32 zero_outliers(F32 a, float threshold) {
    const float32x4_t limit = vdupq_n_f32(threshold);
    return {keep_below(a.low, limit), keep_below(a.high, limit)};
  }
  static F32 where_zero(F32 condition, F32 a, F32 b) {
    return {vbslq_f32(vceqzq_f32(condition.low), a.low, b.low),
            vbslq_f32(vceqzq_f32(condition.high), a.high, b.high)};
  }

  static float sum(F32 a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
  static int32_t max_lane(I32 a) { return vmaxvq_s32(vmaxq_s32(a.low, a.high)); }

  static constexpr int kInt8Width = 16;
  struct Int8 {
    int8x16_t v;
  };
  static Int8 load_int8(const int8_t* p) { return {vld1q_s8(p)}; }
  static I32 dot(I32 sum, Int8 a, Int8 b) {
    // One product fits 16 bits, two of -128 times -128 do not: they are added in 32.
    return {vpadalq_s16(sum.low, vmull_s8(vget_low_s8(a.v), vget_low_s8(b.v))),
            vpadalq_s16(sum.high, vmull_high_s8(a.v, b.v))};
  }
  static int32_t sum(I32 a) { return vaddvq_s32(vaddq_s32(a.low, a.high)); }

 private:
  static float32x4_t lookup4(const Table16& table, int32x4_t index) {
    // The four bytes of entry i are 4 * i + 0, 1, 2 and 3.
    const uint32x4_t first_bytes = vdupq_n_u32(0x03020100);
    const uint32x4_t bytes =
        vmlaq_u32(first_bytes, vreinterpretq_u32_s32(index), vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table.bytes, vreinterpretq_u8_u32(bytes)));
  }

  static uint16x4_t to_bfloat16(float32x4_t a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
  }

  // Where four codes stand in a 32-bit word, in bits from `first`: 4, 0, 12, 8, for the high nibble
  // of a byte comes first. Written so that it is a constant to the compiler, not a load.
  static int32x4_t places(int32_t first) {
    const int32x2_t byte = vcreate_s32(4), next = vadd_s32(byte, vdup_n_s32(8));
    return vaddq_s32(vcombine_s32(byte, next), vdupq_n_s32(first));
  }

  static float32x4_t gather4(const float* base, int32x4_t index) {
    float32x4_t out = vdupq_n_f32(base[vgetq_lane_s32(index, 0)]);
    out = vsetq_lane_f32(base[vgetq_lane_s32(index, 1)], out, 1);
    out = vsetq_lane_f32(base[vgetq_lane_s32(index, 2)], out, 2);
    return vsetq_lane_f32(base[vgetq_lane_s32(index, 3)], out, 3);
  }
  static int32x4_t gather4(const int32_t* base, int32x4_t index) {
    int32x4_t out = vdupq_n_s32(base[vgetq_lane_s32(index, 0)]);
    out = vsetq_lane_s32(base[vgetq_lane_s32(index, 1)], out, 1);
    out = vsetq_lane_s32(base[vgetq_lane_s32(index, 2)], out, 2);
    return vsetq_lane_s32(base[vgetq_lane_s32(index, 3)], out, 3);
  }

  static float32x4_t keep_below(float32x4_t a, float32x4_t limit) {
    const uint32x4_t outlier = vcgeq_f32(vabsq_f32(a), limit);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), outlier));
  }
};

}  // namespace neon
}  // namespace bnbx
