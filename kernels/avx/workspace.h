// Memory that a kernel needs for the time of one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef _WIN32
#include <malloc.h>
#endif

namespace bnbx::cpu {

struct Free {
  void operator()(void* p) const {
#ifdef _WIN32
    _aligned_free(p);
#else
    std::free(p);
#endif
  }
};

template <class T>
using Workspace = std::unique_ptr<T[], Free>;

// Memory for `count` values, aligned to cache lines, not initialised.
template <class T>
static inline Workspace<T> allocate(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) / 64 + 1) * 64;
#ifdef _WIN32
  void* p = _aligned_malloc(bytes, 64);
#else
  void* p = std::aligned_alloc(64, bytes);
#endif
  if (p == nullptr) throw std::bad_alloc();
  return Workspace<T>(static_cast<T*>(p));
}

}  // namespace bnbx::cpu
