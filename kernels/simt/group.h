// What the 32 lanes of a group do together (see device.h).
#pragma once

#include <cstring>
#include <type_traits>

#include "simt/emulator.h"

namespace bnbx::gpu {

template <class T>
struct Shuffled {
  T value;
  int source;
  T result;
};

template <class T>
void shuffle_group(void* const* operands) {
  for (int lane = 0; lane < simt::kLanes; ++lane) {
    auto* own = static_cast<Shuffled<T>*>(operands[lane]);
    own->result = static_cast<const Shuffled<T>*>(operands[own->source])->value;
  }
}

template <class T>
T shuffle_from(simt::Place place, T value, int source) {
  static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_trivially_copyable_v<T>);
  if (source < 0 || source >= simt::kLanes) {
    simt::fail(place, "expected a lane from 0 to 31, got " + std::to_string(source));
  }
  Shuffled<T> operands{value, source, value};
  simt::meet_group(place, &operands, &shuffle_group<T>);
  return operands.result;
}

template <class T>
T shuffle(T value, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return shuffle_from({"shuffle", file, line}, value, lane);
}

template <class T>
T shuffle_xor(T value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return shuffle_from({"shuffle_xor", file, line}, value, simt::lane() ^ mask);
}

inline bool any(bool x, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::meet_group({"any", file, line}, &x, [](void* const* operands) {
    bool found = false;
    for (int lane = 0; lane < simt::kLanes; ++lane) found |= *static_cast<bool*>(operands[lane]);
    for (int lane = 0; lane < simt::kLanes; ++lane) *static_cast<bool*>(operands[lane]) = found;
  });
  return x;
}

inline void sync_group(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::meet_group({"sync_group", file, line}, nullptr, [](void* const*) {});
}

}  // namespace bnbx::gpu
