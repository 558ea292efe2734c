// Elements and codes of a tile, a few for each thread: by one instruction where all of them are
// there and aligned, one by one elsewhere.
#pragma once

#include <type_traits>

#include "cuda/device.h"

namespace bnbx::gpu {

// Consecutive elements of T that fill 16 bytes.
template <class T>
static constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));

// An unsigned integer of as many bytes; byte i of memory is byte i from the low end.
template <int kBytes>
using Word = std::conditional_t<
    kBytes == 8, uint64_t,
    std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 2, uint16_t, uint8_t>>>;

// The part of a tensor that a block of threads works on. Positions in it are 32-bit integers.
struct Tile {
  int64_t first;  // element of the tensor
  int count;      // elements, fewer than kSize only at the tensor's end
};

template <int kSize>
__device__ inline Tile tile_at(int64_t number, int64_t n) {
  const int64_t first = number * kSize, rest = n - first;
  return {first, rest < kSize ? static_cast<int>(rest) : kSize};
}

// Calls launch(whole, begin, end) for the elements that fill tiles, and for the rest. They are two
// kernels, so that the one for few elements takes no registers from the other.
template <class Launch>
void in_tiles(int64_t n, int tile, bool aligned, Launch&& launch) {
  const int64_t whole = aligned ? n - n % tile : 0;
  if (whole > 0) launch(std::true_type{}, int64_t{0}, whole);
  if (whole < n) launch(std::false_type{}, whole, n);
}

// The elements from number i on; those from number n on are zero.
template <bool kWhole, int kCount, class T>
__device__ inline Vector<T, kCount> load_elements(const T* from, int i, int n) {
  if constexpr (kWhole) {
    return load_vector<T, kCount>(from + i);
  } else {
    Vector<T, kCount> out{};
    for (int k = 0; k < kCount; ++k) {
      if (i + k < n) out.values[k] = from[i + k];
    }
    return out;
  }
}

template <bool kWhole, class T, int kCount>
__device__ inline void store_elements(T* to, int i, int n, const Vector<T, kCount>& from) {
  if constexpr (kWhole) {
    store_vector(to + i, from);
  } else {
    for (int k = 0; k < kCount; ++k) {
      if (i + k < n) to[i + k] = from.values[k];
    }
  }
}

// The same for kBytes bytes of codes, as one integer.
template <bool kWhole, int kBytes>
__device__ inline Word<kBytes> load_codes(const uint8_t* from, int i, int n) {
  if constexpr (kWhole) {
    return *reinterpret_cast<const Word<kBytes>*>(from + i);
  } else {
    uint64_t out = 0;
    for (int k = 0; k < kBytes; ++k) {
      if (i + k < n) out |= static_cast<uint64_t>(from[i + k]) << 8 * k;
    }
    return static_cast<Word<kBytes>>(out);
  }
}

template <bool kWhole, int kBytes>
__device__ inline void store_codes(uint8_t* to, int i, int n, Word<kBytes> codes) {
  if constexpr (kWhole) {
    *reinterpret_cast<Word<kBytes>*>(to + i) = codes;
  } else {
    for (int k = 0; k < kBytes; ++k) {
      if (i + k < n) to[i + k] = static_cast<uint8_t>(static_cast<uint64_t>(codes) >> 8 * k);
    }
  }
}

// Which block of any size an element belongs to, with one wide division for a tile.
template <int kTile>
class BlockOf {
 public:
  __device__ BlockOf(int64_t first, int64_t blocksize)
      : block_(first / blocksize), into_(first % blocksize), blocksize_(blocksize) {}

  // For the element at position i of the tile.
  __device__ int64_t operator()(int i) const {
    if (blocksize_ >= kTile) return block_ + (into_ + i >= blocksize_ ? 1 : 0);
    return block_ + static_cast<uint32_t>(into_ + i) / static_cast<uint32_t>(blocksize_);
  }

 private:
  int64_t block_, into_, blocksize_;
};

template <class T, int kCount>
__device__ inline void to_floats(const Vector<T, kCount>& from, float (&to)[kCount]) {
  for (int k = 0; k < kCount; ++k) to[k] = to_float(from.values[k]);
}

// Two at a time: the upper one of a pair needs no more than its bits.
template <int kCount>
__device__ inline void to_floats(const Vector<bfloat16, kCount>& from, float (&to)[kCount]) {
  uint32_t pairs[kCount / 2];
  memcpy(pairs, from.values, sizeof(pairs));
  for (int k = 0; k < kCount; k += 2) {
    to[k] = bits_float(pairs[k / 2] << 16);
    to[k + 1] = bits_float(pairs[k / 2] & 0xffff0000u);
  }
}

// The power of two that x is; -1 if it is none.
inline int log2_of(int64_t x) {
  for (int shift = 0; shift < 63; ++shift) {
    if (x == int64_t{1} << shift) return shift;
  }
  return -1;
}

}  // namespace bnbx::gpu
