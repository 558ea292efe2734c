// Gradients and parameters of a tile between memory and the registers of a lane, in any dtype.
#pragma once

#include "common/rounding.h"
#include "cuda/optimizer_batch.h"

namespace bnbx::gpu {

// Where a tile, and a lane's elements of it, are in a parameter.
struct Place {
  int64_t start;  // number of the tile's first element
  int lane;       // number of the lane's first element in the tile
  int count;      // elements of the tile that the parameter has
  bool vectors;   // read and write whole runs: the same in all lanes of the group

  __device__ Place(const Parameter& u, int64_t at) : start(at), lane(threadIdx.x % kGroup * kRun) {
    const int64_t left = u.numel - at;
    count = left < kTile ? static_cast<int>(left) : kTile;
    vectors = u.vectors && count == kTile;
  }

  __device__ int64_t at(int run) const { return start + lane + run * kRunStride; }
  __device__ bool has(int run, int i) const { return lane + run * kRunStride + i < count; }
};

// A lane's elements as they lie in memory, four to a run: floats in words of their own, others two
// to a word. To be loaded before any of them is used.
struct Words {
  uint32_t of[kRuns][kRun];
};

// Word is what an element is in memory: uint32_t or uint16_t.
template <class Word>
__device__ inline void load_run(const Word* from, const Place& place, int run,
                                uint32_t (&words)[kRun]) {
  constexpr int kWords = kRun * sizeof(Word) / 4;
  from += place.at(run);
  if (place.vectors) {
    const auto vector = load_vector<uint32_t, kWords>(reinterpret_cast<const uint32_t*>(from));
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = vector.values[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int shift = 8 * sizeof(Word) * i % 32;
    if (place.has(run, i)) words[i * kWords / kRun] |= static_cast<uint32_t>(from[i]) << shift;
  }
}

template <class Word>
__device__ inline void store_run(Word* to, const Place& place, int run,
                                 const uint32_t (&words)[kRun]) {
  constexpr int kWords = kRun * sizeof(Word) / 4;
  to += place.at(run);
  if (place.vectors) {
    Vector<uint32_t, kWords> vector;
#pragma unroll
    for (int i = 0; i < kWords; ++i) vector.values[i] = words[i];
    store_vector<uint32_t, kWords>(reinterpret_cast<uint32_t*>(to), vector);
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int shift = 8 * sizeof(Word) * i % 32;
    if (place.has(run, i)) to[i] = static_cast<Word>(words[i * kWords / kRun] >> shift);
  }
}

__device__ inline Words load_words(const void* from, bool wide, const Place& place) {
  Words words;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    if (wide) {
      load_run(static_cast<const uint32_t*>(from), place, run, words.of[run]);
    } else {
      load_run(static_cast<const uint16_t*>(from), place, run, words.of[run]);
    }
  }
  return words;
}

__device__ inline void store_words(const Words& words, void* to, bool wide, const Place& place) {
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    if (wide) {
      store_run(static_cast<uint32_t*>(to), place, run, words.of[run]);
    } else {
      store_run(static_cast<uint16_t*>(to), place, run, words.of[run]);
    }
  }
}

template <class T>
__device__ inline float element(const Words& words, int i) {
  if constexpr (sizeof(T) == 4) {
    return bits_float(words.of[i / kRun][i % kRun]);
  } else {
    const uint32_t both = words.of[i / kRun][i % kRun / 2];
    return to_float(T{static_cast<uint16_t>(i % 2 == 0 ? both & 0xffffu : both >> 16)});
  }
}

template <class T>
__device__ inline void set_element(Words& words, int i, float x) {
  T rounded;
  from_float(x, &rounded);
  if constexpr (sizeof(T) == 4) {
    words.of[i / kRun][i % kRun] = float_bits(rounded);
  } else {
    uint32_t& both = words.of[i / kRun][i % kRun / 2];
    both = i % 2 == 0 ? rounded.bits : both | static_cast<uint32_t>(rounded.bits) << 16;
  }
}

template <class T>
__device__ inline void to_floats(const Words& words, float (&values)[kPerLane]) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) values[i] = element<T>(words, i);
}

__device__ inline void to_floats(const Words& words, DType dtype, float (&values)[kPerLane]) {
  if (dtype == DType::kFloat32) return to_floats<float>(words, values);
  if (dtype == DType::kBFloat16) return to_floats<bfloat16>(words, values);
  to_floats<float16>(words, values);
}

template <class T>
__device__ inline Words from_floats(const float (&values)[kPerLane]) {
  Words words;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) set_element<T>(words, i, values[i]);
  return words;
}

__device__ inline float nearest_bf16(float x) {
  bfloat16 rounded;
  from_float(x, &rounded);
  return to_float(rounded);
}

// The upper 16 bits of a float, a bfloat16: rounded towards zero.
__device__ inline float truncated_bf16(uint32_t bits) { return bits_float(bits & 0xffff0000u); }

// Rounds up or down with the probability that makes the mean exact: 16 random bits are added to the
// 16 bits that are cut off. Finite values stay finite: what is above the largest becomes it.
__device__ inline Words rounded_stochastically(const float (&values)[kPerLane], RandomBits random,
                                               const Place& place) {
  Words words;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const uint32_t bits = float_bits(values[i]);
    const int64_t index = place.at(i / kRun) + i % kRun;
    const uint32_t noise = random(static_cast<uint32_t>(index)) & 0xffffu;
    const bool moves = (bits & 0x7fffffffu) < 0x7f7f0000u;
    set_element<bfloat16>(words, i, truncated_bf16(moves ? bits + noise : bits));
  }
  return words;
}

// Kahan 1965: the parameter is p + compensation, p the nearest bfloat16 to that sum. Where rounding
// the rest would take the sum over a tie, so that p is no longer the nearest, it is cut off
// instead.
__device__ inline void compensated(const float (&values)[kPerLane], Words& p, Words& rests) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const float kept = nearest_bf16(values[i]);
    const float rest = values[i] - kept;
    const float rounded = nearest_bf16(rest);
    const bool stays = nearest_bf16(kept + rounded) - kept == 0.0f;
    set_element<bfloat16>(p, i, kept);
    set_element<bfloat16>(rests, i, stays ? rounded : truncated_bf16(float_bits(rest)));
  }
}

}  // namespace bnbx::gpu
