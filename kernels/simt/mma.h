// The products of a group's registers (see device.h), as plain loops over the matrices.
#pragma once

#include "common/types.h"
#include "simt/emulator.h"

namespace bnbx::gpu {

template <class Sum>
struct MmaRegisters {
  Sum* d;
  const uint32_t* a;
  const uint32_t* b;
};

inline float element(uint32_t bits, float16) {
  return to_float(float16{static_cast<uint16_t>(bits)});
}
inline float element(uint32_t bits, bfloat16) {
  return to_float(bfloat16{static_cast<uint16_t>(bits)});
}
inline int32_t element(uint32_t bits, int8_t) { return static_cast<int8_t>(bits); }

inline float multiply_add(float x, float y, float sum) { return fmaf(x, y, sum); }
inline int32_t multiply_add(int32_t x, int32_t y, int32_t sum) { return x * y + sum; }

template <class Sum, class T>
void multiply_group(void* const* operands) {
  constexpr int kElements = sizeof(uint32_t) / sizeof(T);  // of a register
  constexpr int kDepth = 8 * kElements;                    // columns of a, rows of b
  Sum a[16][kDepth], b[8][kDepth];
  for (int lane = 0; lane < simt::kLanes; ++lane) {
    const auto& own = *static_cast<const MmaRegisters<Sum>*>(operands[lane]);
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < kElements; ++i) {
        const int shift = 8 * static_cast<int>(sizeof(T)) * i;
        const int k = half * kDepth / 2 + lane % 4 * kElements + i;
        a[lane / 4][k] = element(own.a[2 * half] >> shift, T{});
        a[lane / 4 + 8][k] = element(own.a[2 * half + 1] >> shift, T{});
        b[lane / 4][k] = element(own.b[half] >> shift, T{});
      }
    }
  }
  for (int lane = 0; lane < simt::kLanes; ++lane) {
    Sum* d = static_cast<const MmaRegisters<Sum>*>(operands[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const Sum* row = a[lane / 4 + i / 2 * 8];
      const Sum* column = b[lane % 4 * 2 + i % 2];
      for (int k = 0; k < kDepth; ++k) d[i] = multiply_add(row[k], column[k], d[i]);
    }
  }
}

template <class Sum, class T>
void mma_of(simt::Place place, Sum* d, const uint32_t* a, const uint32_t* b, T) {
  MmaRegisters<Sum> registers{d, a, b};
  simt::meet_group(place, &registers, &multiply_group<Sum, T>);
}

inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16 type,
                const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mma_of({"mma", file, line}, d, a, b, type);
}

inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16 type,
                const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mma_of({"mma", file, line}, d, a, b, type);
}

inline void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mma_of({"mma", file, line}, d, a, b, int8_t{});
}

struct MatrixRow {
  const void* row;
  uint32_t* words;
};

inline void load_matrices(uint32_t (&words)[4], const void* row,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  MatrixRow own{row, words};
  simt::meet_group({"load_matrices", file, line}, &own, [](void* const* operands) {
    for (int lane = 0; lane < simt::kLanes; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto& source = *static_cast<const MatrixRow*>(operands[8 * matrix + lane / 4]);
        static_cast<const MatrixRow*>(operands[lane])->words[matrix] =
            static_cast<const uint32_t*>(source.row)[lane % 4];
      }
    }
  });
}

inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
  for (int i = 0; i < 4; ++i) {
    sum = multiply_add(element(a >> 8 * i, int8_t{}), element(b >> 8 * i, int8_t{}), sum);
  }
  return sum;
}

}  // namespace bnbx::gpu
