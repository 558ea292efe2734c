// What the states of an optimizer are stored as: floats, or codes of 8 or 4 bits with a scale, the
// absmax, for each block. state2 has a map of its own; the third state follows the first in its
// tensors.
#pragma once

#include "cuda/nearest_entry.h"
#include "cuda/optimizer_elements.h"

namespace bnbx::gpu {

BNBX_INLINE int map_of(int state) { return state == 1; }

BNBX_INLINE void* tensor_of(const Parameter& u, int state) {
  return state == 1 ? u.state2 : u.state1;
}

struct FloatStates {
  static constexpr int kRunBytes = 16;
  struct Tables {
    __device__ void build(const float*, const float*, int) {}
  };
  using Stored = Words;

  BNBX_MEMBER static void* memory(const Parameter& u, int state) {
    return static_cast<float*>(tensor_of(u, state)) + (state == 2 ? u.numel : 0);
  }

  __device__ static Stored load(const Parameter& u, int state, const Place& place) {
    return load_words(memory(u, state), true, place);
  }
  __device__ static void decode(const Tables&, int, const Stored& stored,
                                float (&values)[kPerLane]) {
    to_floats<float>(stored, values);
  }
  __device__ static void store(const Tables&, const Parameter& u, int state, const Place& place,
                               const float (&values)[kPerLane]) {
    store_words(from_floats<float>(values), memory(u, state), true, place);
  }
};

// The codes of a run are one word, the first in the low byte. Of 4 bits, each byte has two, the
// first in the high nibble; a block of 128 is a run of every lane.
template <int kBits>
struct CodedStates {
  static constexpr int kBlocksize = kBits == 8 ? kOptimizerBlocksize : kOptimizerBlocksize4;
  static constexpr int kBlocks = kTile / kBlocksize;  // in a tile
  static constexpr int kRunBytes = kRun * kBits / 8;
  using Word = std::conditional_t<kBits == 8, uint32_t, uint16_t>;
  using Nearest = std::conditional_t<kBits == 8, Nearest256, Nearest16>;

  struct Tables {
    Nearest of[2];

    __device__ void build(const float* qmap1, const float* qmap2, int count) {
      of[0].build(qmap1);
      if (count > 1) of[1].build(qmap2);
    }
  };
  struct Stored {
    Word codes[kRuns];
    float scales[kBlocks];
  };

  BNBX_MEMBER static int64_t bytes(int64_t numel) { return (numel * kBits + 7) / 8; }
  BNBX_MEMBER static uint8_t* memory(const Parameter& u, int state) {
    return static_cast<uint8_t*>(tensor_of(u, state)) + (state == 2 ? bytes(u.numel) : 0);
  }

  __device__ static float* scales(const Parameter& u, int state, const Place& place) {
    const int64_t before = state == 2 ? (u.numel + kBlocksize - 1) / kBlocksize : 0;
    return (state == 1 ? u.absmax2 : u.absmax1) + before + place.start / kBlocksize;
  }
  __device__ static bool has_block(const Place& place, int block) {
    return block * kBlocksize < place.count;
  }

  __device__ static Stored load(const Parameter& u, int state, const Place& place) {
    Stored out;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      out.scales[block] = has_block(place, block) ? scales(u, state, place)[block] : 0.0f;
    }
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const uint8_t* from = memory(u, state) + place.at(run) * kBits / 8;
      if (place.vectors) {
        out.codes[run] = *reinterpret_cast<const Word*>(from);
        continue;
      }
      out.codes[run] = 0;
      for (int i = 0; i < kRunBytes; ++i) {
        if (place.has(run, i * 8 / kBits)) {
          out.codes[run] = static_cast<Word>(out.codes[run] | from[i] << 8 * i);
        }
      }
    }
    return out;
  }

  __device__ static void decode(const Tables& tables, int state, const Stored& stored,
                                float (&values)[kPerLane]) {
    const Nearest& table = tables.of[map_of(state)];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int code = stored.codes[i / kRun] >> shift(i) & (Nearest::kEntries - 1);
      values[i] = table.entries[code] * stored.scales[i * kBlocks / kPerLane];
    }
  }

  // Elements past the end must be 0.
  __device__ static void store(const Tables& tables, const Parameter& u, int state,
                               const Place& place, const float (&values)[kPerLane]) {
    const Nearest& table = tables.of[map_of(state)];
    const int steps = table.steps();
    Word codes[kRuns] = {};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      constexpr int kCount = kPerLane / kBlocks;
      const float absmax = group_absmax<kCount>(values + block * kCount);
      if (threadIdx.x % kGroup == 0 && has_block(place, block)) {
        scales(u, state, place)[block] = absmax;
      }
      if (absmax != absmax) continue;  // decodes to NaN whatever the codes are
      const float factor = 1.0f / fmaxf(absmax, kSmallestAbsmax);
#pragma unroll
      for (int i = block * kCount; i < (block + 1) * kCount; ++i) {
        const int code = table.find(values[i] * factor, steps);
        codes[i / kRun] = static_cast<Word>(codes[i / kRun] | code << shift(i));
      }
    }
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      uint8_t* to = memory(u, state) + place.at(run) * kBits / 8;
      if (place.vectors) {
        *reinterpret_cast<Word*>(to) = codes[run];
        continue;
      }
      for (int i = 0; i < kRunBytes; ++i) {
        if (place.has(run, i * 8 / kBits)) to[i] = static_cast<uint8_t>(codes[run] >> 8 * i);
      }
    }
  }

 private:
  BNBX_MEMBER static int shift(int i) {
    i %= kRun;
    return kBits == 8 ? 8 * i : 8 * (i / 2) + (i % 2 == 0 ? 4 : 0);
  }

  // The largest magnitude of some elements of every lane; NaN if one is NaN or infinite.
  template <int kCount>
  __device__ static float group_absmax(const float* values) {
    uint32_t largest = 0;  // the bits of magnitudes order like them, and NaN above infinity
    const auto take = [&](uint32_t bits) { largest = bits > largest ? bits : largest; };
#pragma unroll
    for (int i = 0; i < kCount; ++i) take(float_bits(values[i]) & 0x7fffffffu);
    for (int mask = kGroup / 2; mask > 0; mask /= 2) take(shuffle_xor(largest, mask));
    return bits_float(largest >= 0x7f800000u ? 0x7fc00000u : largest);
  }
};

}  // namespace bnbx::gpu
