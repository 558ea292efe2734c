// What an optimizer update reads and writes: the elements of a SIMD-group's tile in its lanes'
// registers, the states as floats or as codes of 8 or 4 bits with a scale for each tile.
#pragma once

#include "common/optimizers.h"
#include "common/rounding.h"
#include "metal/codes_8bit.h"

namespace bnbx {

// Places of the integers that tell a kernel what it updates.
enum Option { kNumel, kGDtype, kPDtype, kRounding, kSeed, kStep, kSkipZeros, kIsLimited };
enum Rounding { kNearest, kCompensated, kStochastic };

// A block of codes, the unit in which everything is updated; as many elements of float states.
template <uint kBits>
struct Layout {
  BNBX_CONSTANT uint kTile = kBits == 4 ? kOptimizerBlocksize4 : kOptimizerBlocksize;
  BNBX_CONSTANT uint kPerLane = kTile / kLanes;
  BNBX_CONSTANT uint kEntries = kBits == 4 ? 16 : 256;  // of a map

  // The position in the tile of a lane's element: neighbouring lanes have neighbours, or with two
  // codes to a byte neighbouring bytes.
  BNBX_INLINE uint position(uint lane, uint i) {
    return kBits == 4 ? i / 2 * 2 * kLanes + 2 * lane + i % 2 : i * kLanes + lane;
  }
};

// The tensors of a state, of which the third follows the first in its tensors.
struct StateMemory {
  device float* values;
  device uchar* codes;
  device float* absmax;
  const device float* map;
  const threadgroup float* bounds;
};

template <uint kBits>
struct States {
  using Here = Layout<kBits>;

  BNBX_INLINE float decode(StateMemory memory, ulong at, ulong tile) {
    if (kBits == 32) return memory.values[at];
    const uint code =
        kBits == 8 ? memory.codes[at] : memory.codes[at / 2] >> (at % 2 == 0 ? 4 : 0) & 15;
    return memory.map[code] * memory.absmax[tile];
  }

  // Elements past the end must be 0. All lanes of the SIMD-group call.
  BNBX_INLINE void encode(StateMemory memory, ulong numel, ulong tile, uint lane,
                          const thread float* values) {
    const ulong start = tile * Here::kTile;
    if (kBits == 32) {
      for (uint i = 0; i < Here::kPerLane; ++i) {
        const ulong at = start + Here::position(lane, i);
        if (at < numel) memory.values[at] = values[i];
      }
      return;
    }
    uint largest = 0;
    for (uint i = 0; i < Here::kPerLane; ++i) {
      largest = metal::max(largest, magnitude_bits(values[i]));
    }
    const float scale = finite_magnitude(metal::simd_max(largest));
    if (start >= numel) return;
    if (lane == 0) memory.absmax[tile] = scale;
    const float inverse = inverse_of(scale);
    uint codes[Here::kPerLane];
    for (uint i = 0; i < Here::kPerLane; ++i) {
      const float x = metal::clamp(values[i] * inverse, -1.0f, 1.0f);
      codes[i] = is_nan(scale) ? 0 : nearest_entry<Here::kEntries>(memory.bounds, x);
    }
    for (uint i = 0; i < Here::kPerLane; i += kBits == 4 ? 2 : 1) {
      const ulong at = start + Here::position(lane, i);
      if (at >= numel) continue;
      if (kBits == 8) {
        memory.codes[at] = uchar(codes[i]);
      } else {
        memory.codes[at / 2] = uchar(codes[i] << 4 | codes[i + 1]);
      }
    }
  }
};

BNBX_INLINE float nearest_bf16(float x) { return to_float(rounded_to<bfloat16>(x)); }

// The upper 16 bits of a float, a bfloat16: rounded towards zero.
BNBX_INLINE bfloat16 truncated_bf16(uint bits) { return bfloat16{uint16_t(bits >> 16)}; }

// Rounds up or down with the probability that makes the mean exact: 16 random bits are added to the
// 16 bits that are cut off. Finite values stay finite: what is above the largest becomes it.
BNBX_INLINE bfloat16 rounded_stochastically(float x, RandomBits random, ulong at) {
  const uint bits = float_bits(x);
  const bool moves = (bits & 0x7fffffffu) < 0x7f7f0000u;
  return truncated_bf16(moves ? bits + (random(uint(at)) & 0xffffu) : bits);
}

// Kahan 1965: the parameter is p + rest, p the nearest bfloat16 to that sum. Where rounding the
// rest would take the sum over a tie, so that p is no longer the nearest, it is cut off instead.
BNBX_INLINE bfloat16 rest_of(float x) {
  const float kept = nearest_bf16(x), rest = x - kept, rounded = nearest_bf16(rest);
  const bool stays = nearest_bf16(kept + rounded) - kept == 0.0f;
  return stays ? rounded_to<bfloat16>(rounded) : truncated_bf16(float_bits(rest));
}

}  // namespace bnbx
