// What the states of an optimizer are stored as: floats, or codes of 8 or 4 bits with a scale, the
// absmax, for each block. state2 has a map of its own; the third state follows the first in its
// tensors.
#pragma once

#include "avx/quantize_4bit.h"
#include "avx/quantize_blockwise.h"
#include "avx/sweep.h"
#include "common/codebooks.h"

namespace bnbx::cpu {

static inline int map_of(int state) { return state == 1; }

static inline void* tensor_of(const ParameterUpdate& u, int state) {
  return state == 1 ? u.state2 : u.state1;
}

// The absmax of the block that begins with element `start` of a parameter.
template <class States>
static inline float* absmax_of(const ParameterUpdate& u, int state, int64_t start) {
  const int64_t before = state == 2 ? ceil_div(u.numel, States::kBlocksize) : 0;
  return (state == 1 ? u.absmax2 : u.absmax1) + before + start / States::kBlocksize;
}

struct FloatStates {
  static constexpr bool kCodes = false;
  static constexpr int64_t kBlocksize = kOptimizerBlocksize;

  static float* values(const ParameterUpdate& u, int state, int64_t start) {
    return static_cast<float*>(tensor_of(u, state)) + (state == 2 ? u.numel : 0) + start;
  }
  BNBX_MEMBER FloatStates decoder() const { return *this; }
};

// `Encoder` finds the nearest entries of a map.
template <class V, class Encoder>
struct States8 {
  static constexpr bool kCodes = true;
  static constexpr int64_t kBlocksize = kOptimizerBlocksize;

  struct Decoder {
    const float* maps[2];

    BNBX_MEMBER typename V::F32 operator()(int state, const uint8_t* codes, int64_t i) const {
      return V::gather(maps[map_of(state)], V::load_bytes(codes + i));
    }
  };

  Decoder maps;
  const Encoder* encoders[2];

  static int64_t bytes(int64_t n) { return n; }
  static uint8_t* codes(const ParameterUpdate& u, int state, int64_t start) {
    return static_cast<uint8_t*>(tensor_of(u, state)) + (state == 2 ? u.numel : 0) + start;
  }
  BNBX_MEMBER Decoder decoder() const { return maps; }
  BNBX_MEMBER void encode(int state, const float* values, float absmax, int64_t n,
                          uint8_t* codes) const {
    quantize_blockwise_block<V>(values, absmax, n, *encoders[map_of(state)], codes);
  }
};

// Two codes in a byte, of each state from a byte of its own on.
template <class V>
struct States4 {
  static constexpr bool kCodes = true;
  static constexpr int64_t kBlocksize = kOptimizerBlocksize4;

  struct Decoder {
    typename V::Table16 maps[2];

    BNBX_MEMBER typename V::F32 operator()(int state, const uint8_t* codes, int64_t i) const {
      return V::lookup(maps[map_of(state)], V::load_nibbles(codes + i / 2));
    }
  };

  Decoder maps;
  Encoder4<V> encoders[2];

  static int64_t bytes(int64_t n) { return ceil_div(n, 2); }
  static uint8_t* codes(const ParameterUpdate& u, int state, int64_t start) {
    return static_cast<uint8_t*>(tensor_of(u, state)) + (state == 2 ? bytes(u.numel) : 0) +
           start / 2;
  }
  BNBX_MEMBER Decoder decoder() const { return maps; }
  BNBX_MEMBER void encode(int state, const float* values, float absmax, int64_t n,
                          uint8_t* codes) const {
    encode_4bit_block<V>(values, absmax, n, encoders[map_of(state)], codes);
  }
};

}  // namespace bnbx::cpu
