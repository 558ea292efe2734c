// The vector vocabulary in plain C++: what every machine runs, and the meaning of each word.
//
// A vocabulary is a struct with the types F32 and I32 of kWidth lanes and the static functions
// below. Kernels are templates over it. F32 has + - * /, I32 has + - * & | ^ and
// shift_right_logical().
#pragma once

#include <cmath>
#include <cstdint>

#include "common/types.h"

namespace bnbx {
namespace scalar {

struct F32 {
  float v[8];
  F32() = default;
  explicit F32(float x) {
    for (float& lane : v) lane = x;
  }
};

struct I32 {
  int32_t v[8];
  I32() = default;
  explicit I32(int32_t x) {
    for (int32_t& lane : v) lane = x;
  }
};

template <class Out, class In, class Function>
static inline Out map(In a, In b, Function f) {
  Out out;
  for (int i = 0; i < 8; ++i) out.v[i] = f(a.v[i], b.v[i]);
  return out;
}

static inline F32 operator+(F32 a, F32 b) {
  return map<F32>(a, b, [](float x, float y) { return x + y; });
}
static inline F32 operator-(F32 a, F32 b) {
  return map<F32>(a, b, [](float x, float y) { return x - y; });
}
static inline F32 operator*(F32 a, F32 b) {
  return map<F32>(a, b, [](float x, float y) { return x * y; });
}
static inline F32 operator/(F32 a, F32 b) {
  return map<F32>(a, b, [](float x, float y) { return x / y; });
}
static inline I32 operator+(I32 a, I32 b) {
  return map<I32>(a, b, [](int32_t x, int32_t y) {
    return static_cast<int32_t>(static_cast<uint32_t>(x) + static_cast<uint32_t>(y));
  });
}
static inline I32 operator-(I32 a, I32 b) {
  return map<I32>(a, b, [](int32_t x, int32_t y) {
    return static_cast<int32_t>(static_cast<uint32_t>(x) - static_cast<uint32_t>(y));
  });
}
static inline I32 operator|(I32 a, I32 b) {
  return map<I32>(a, b, [](int32_t x, int32_t y) { return x | y; });
}
static inline I32 operator&(I32 a, I32 b) {
  return map<I32>(a, b, [](int32_t x, int32_t y) { return x & y; });
}
static inline I32 operator^(I32 a, I32 b) {
  return map<I32>(a, b, [](int32_t x, int32_t y) { return x ^ y; });
}
// The low 32 bits.
static inline I32 operator*(I32 a, I32 b) {
  return map<I32>(a, b, [](int32_t x, int32_t y) {
    return static_cast<int32_t>(static_cast<uint32_t>(x) * static_cast<uint32_t>(y));
  });
}
template <int kShift>
static inline I32 shift_right_logical(I32 a) {
  return map<I32>(a, a, [](int32_t x, int32_t) {
    return static_cast<int32_t>(static_cast<uint32_t>(x) >> kShift);
  });
}
static inline F32 sqrt(F32 a) {
  return map<F32>(a, a, [](float x, float) { return ::sqrtf(x); });
}
// 1 or -1; zero and NaN stay.
static inline F32 sign(F32 a) {
  return map<F32>(a, a, [](float x, float) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; });
}

struct Vec {
  using F32 = scalar::F32;
  // Floats whose products may be added without rounding them first.
  using Fused = F32;
  using I32 = scalar::I32;
  static constexpr int kWidth = 8;
  // Rows of A that a product holds in registers at a time, with four rows of B.
  static constexpr int kTileRows = 1;

  // A table of 16 floats, in registers where there are enough.
  struct Table16 {
    float entries[16];
  };
  static Table16 table16(const float* entries) {
    Table16 table;
    memcpy(table.entries, entries, sizeof(table.entries));
    return table;
  }
  static F32 lookup(const Table16& table, I32 index) { return gather(table.entries, index); }

  template <class T>
  static F32 load(const T* p) {
    F32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = to_float(p[i]);
    return out;
  }
  template <class T>
  static void store(T* p, F32 a) {
    for (int i = 0; i < kWidth; ++i) from_float(a.v[i], p + i);
  }

  // kWidth codes of 4 bits from kWidth / 2 bytes, the high nibble first; and back.
  static I32 load_nibbles(const uint8_t* p) {
    I32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = (i % 2 ? p[i / 2] : p[i / 2] >> 4) & 15;
    return out;
  }
  static void store_nibbles(uint8_t* p, I32 a) {
    for (int i = 0; i < kWidth / 2; ++i) {
      p[i] = static_cast<uint8_t>(a.v[2 * i] << 4 | a.v[2 * i + 1]);
    }
  }

  static I32 load_bytes(const uint8_t* p) {
    I32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = p[i];
    return out;
  }
  // The low byte of each lane.
  static void store_bytes(uint8_t* p, I32 a) {
    for (int i = 0; i < kWidth; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
  }
  // The same of four vectors, whose lanes must be below 256.
  static void store_bytes(uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    store_bytes(p, a);
    store_bytes(p + kWidth, b);
    store_bytes(p + 2 * kWidth, c);
    store_bytes(p + 3 * kWidth, d);
  }
  // To nearest, ties to even; the values must fit.
  static void store_rounded(int8_t* p, F32 a) {
    for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(::lrintf(a.v[i]));
  }
  static F32 from_int32(const int32_t* p) {
    F32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = static_cast<float>(p[i]);
    return out;
  }
  static F32 from_int8(const int8_t* p) {
    F32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = static_cast<float>(p[i]);
    return out;
  }

  static F32 gather(const float* base, I32 index) {
    F32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = base[index.v[i]];
    return out;
  }
  static I32 gather(const int32_t* base, I32 index) {
    I32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = base[index.v[i]];
    return out;
  }

  static F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
  // Bits of the magnitude: they order like the magnitudes, NaN above infinity above the finite.
  static I32 abs_bits(F32 a) {
    I32 out;
    for (int i = 0; i < kWidth; ++i) {
      out.v[i] = static_cast<int32_t>(float_bits(a.v[i]) & 0x7fffffffu);
    }
    return out;
  }
  static I32 bits(F32 a) {
    I32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = static_cast<int32_t>(float_bits(a.v[i]));
    return out;
  }
  static F32 from_bits(I32 a) {
    F32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = bits_float(static_cast<uint32_t>(a.v[i]));
    return out;
  }
  static I32 max(I32 a, I32 b) {
    return map<I32>(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; });
  }
  static I32 min(I32 a, I32 b) {
    return map<I32>(a, b, [](int32_t x, int32_t y) { return x < y ? x : y; });
  }
  template <int kShift>
  static I32 shift_right(I32 a) {
    return map<I32>(a, a, [](int32_t x, int32_t) { return x >> kShift; });
  }
  // a > b ? value : 0
  static I32 where_greater(F32 a, F32 b, int32_t value) {
    return map<I32>(a, b, [value](float x, float y) { return x > y ? value : 0; });
  }
  static I32 where_greater(I32 a, I32 b, int32_t value) {
    return map<I32>(a, b, [value](int32_t x, int32_t y) { return x > y ? value : 0; });
  }
  // |a| >= threshold ? 0 : a, NaN stays
  static F32 zero_outliers(F32 a, float threshold) {
    F32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = ::fabsf(a.v[i]) >= threshold ? 0.0f : a.v[i];
    return out;
  }
  // condition == 0 ? a : b
  static F32 where_zero(F32 condition, F32 a, F32 b) {
    F32 out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = condition.v[i] == 0.0f ? a.v[i] : b.v[i];
    return out;
  }

  static float sum(F32 a) {
    float total = 0.0f;
    for (float lane : a.v) total += lane;
    return total;
  }
  static int32_t max_lane(I32 a) {
    int32_t best = a.v[0];
    for (int32_t lane : a.v) best = lane > best ? lane : best;
    return best;
  }

  // Products of int8: kInt8Width values of each side are multiplied and added into kWidth lanes.
  static constexpr int kInt8Width = 16;
  struct Int8 {
    int16_t v[16];
  };
  static Int8 load_int8(const int8_t* p) {
    Int8 out;
    for (int i = 0; i < kInt8Width; ++i) out.v[i] = p[i];
    return out;
  }
  static I32 dot(I32 sum, Int8 a, Int8 b) {
    for (int i = 0; i < kWidth; ++i) {
      sum.v[i] += a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1];
    }
    return sum;
  }
  static int32_t sum(I32 a) {
    uint32_t total = 0;
    for (int32_t lane : a.v) total += static_cast<uint32_t>(lane);
    return static_cast<int32_t>(total);
  }
};

}  // namespace scalar
}  // namespace bnbx
