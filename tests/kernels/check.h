// What the conformance tests share: counting failures, element types, random input, all ISAs.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "bnbx/kernels.h"
#include "common/codebooks.h"
#include "common/types.h"

namespace bnbx::test {

// Whether the kernels are those for GPUs, which cannot check on the host what lies on the device.
#ifdef BNBX_SIMT
constexpr bool kForGpus = true;
#else
constexpr bool kForGpus = false;
#endif

inline int failures = 0;
inline std::string context;  // what is being tested, for the message

inline void check(bool holds, const char* condition, const char* file, int line) {
  if (holds) return;
  if (++failures <= 20) {
    std::printf("%s:%d: [%s] does not hold: %s\n", file, line, context.c_str(), condition);
  }
}

#define CHECK(condition) ::bnbx::test::check(condition, #condition, __FILE__, __LINE__)

inline int result() {
  std::printf("%d failures on", failures);
  for (const std::string& name : available_isas()) std::printf(" %s", name.c_str());
  std::printf("\n");
  return failures == 0 ? 0 : 1;
}

// Calls f once with each instruction set in use.
template <class Function>
void for_each_isa(Function f) {
  for (const std::string& name : available_isas()) {
    select_isa(name);
    CHECK(isa() == name);
    context = name;
    f();
  }
}

template <class T>
constexpr DType dtype_of() {
  if (std::is_same_v<T, float16>) return DType::kFloat16;
  if (std::is_same_v<T, bfloat16>) return DType::kBFloat16;
  return DType::kFloat32;
}

// Calls f with a value of each element type.
template <class Function>
void for_each_type(Function f) {
  f(float{});
  f(float16{});
  f(bfloat16{});
}

// Spacing of the numbers around 1, and the smallest positive number.
template <class T>
constexpr double eps() {
  return std::is_same_v<T, float> ? 0x1p-23 : std::is_same_v<T, float16> ? 0x1p-10 : 0x1p-7;
}
template <class T>
constexpr double smallest() {
  return std::is_same_v<T, float> ? 0x1p-149 : std::is_same_v<T, float16> ? 0x1p-24 : 0x1p-133;
}

inline double number(float x) { return static_cast<double>(x); }
template <class T>
double number(T x) {
  return static_cast<double>(to_float(x));
}

template <class T>
T rounded(float x) {
  T out;
  from_float(x, &out);
  return out;
}

// Whether `actual` is `exact`, off by at most `error` and then rounded to T; NaN is NaN.
template <class T>
bool close(T actual, double exact, double error) {
  if (std::isnan(exact)) return std::isnan(number(actual));
  const double bound = std::fabs(exact) * eps<T>() / 2 + smallest<T>() + error;
  return std::fabs(number(actual) - exact) <= bound * 1.001;
}

inline std::mt19937& generator() {
  static std::mt19937 engine(0);
  return engine;
}

inline int64_t random_below(int64_t n) {
  return std::uniform_int_distribution<int64_t>(0, n - 1)(generator());
}

template <class T>
std::vector<T> random_normal(int64_t n, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<T> out(n);
  for (T& x : out) x = rounded<T>(normal(generator()));
  return out;
}

inline std::vector<float> random_positive(int64_t n) {
  std::uniform_real_distribution<float> uniform(0.1f, 2.0f);
  std::vector<float> out(n);
  for (float& x : out) x = uniform(generator());
  return out;
}

template <class Int>
std::vector<Int> random_bytes(int64_t n) {
  std::vector<Int> out(n);
  for (Int& x : out) x = static_cast<Int>(random_below(256));
  return out;
}

// The largest magnitude of n values, NaN if one is not finite.
template <class T>
double naive_absmax(const T* values, int64_t n) {
  double best = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(number(values[i]))) return std::numeric_limits<double>::quiet_NaN();
    best = std::fmax(best, std::fabs(number(values[i])));
  }
  return best;
}

// Whether no entry of a table is nearer to x than `chosen` is, but for rounding in float.
inline bool is_nearest(double chosen, double x, const float* table, int entries) {
  for (int i = 0; i < entries; ++i) {
    if (std::fabs(number(table[i]) - x) + 8 * eps<float>() < std::fabs(chosen - x)) return false;
  }
  return true;
}

inline int64_t blocks_of(int64_t n, int64_t blocksize) {
  return n / blocksize + (n % blocksize != 0 ? 1 : 0);
}

}  // namespace bnbx::test
