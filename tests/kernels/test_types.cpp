// The conversions of common/types.h, and those of every vocabulary through a kernel that converts.
#include <algorithm>
#include <cstring>

#include "check.h"

namespace bnbx::test {
namespace {

// What the bits of a 16-bit float mean, from the definition: sign, exponent, fraction.
double meaning(uint16_t bits, int fraction_bits) {
  const int exponent_bits = 15 - fraction_bits;
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

template <class T>
constexpr int fraction_bits() {
  return std::is_same_v<T, float16> ? 10 : 7;
}

// Finite magnitudes in ascending order; the position of each is its bit pattern.
template <class T>
std::vector<double> magnitudes() {
  std::vector<double> out;
  for (int bits = 0; bits < 0x8000; ++bits) {
    const double value = meaning(static_cast<uint16_t>(bits), fraction_bits<T>());
    if (std::isfinite(value)) out.push_back(value);
  }
  return out;
}

// Rounds to nearest, ties to the even pattern, by looking at both neighbours. What is half a step
// or more above the largest number is infinity.
template <class T>
uint16_t naive_round(float x, const std::vector<double>& ordered) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(number(x));
  const auto above = std::lower_bound(ordered.begin(), ordered.end(), magnitude);
  const auto high = static_cast<uint16_t>(above - ordered.begin());
  if (high == 0) return sign;
  const double low_value = ordered[high - 1];
  const double step = ordered.back() - ordered[ordered.size() - 2];
  const double high_value = above == ordered.end() ? ordered.back() + step : *above;
  const double up = high_value - magnitude, down = magnitude - low_value;
  const bool take_high = up < down || (up == down && high % 2 == 0);
  return static_cast<uint16_t>(sign | (take_high ? high : high - 1));
}

template <class T>
void test_every_pattern() {
  for (int i = 0; i < 0x10000; ++i) {
    const T x{static_cast<uint16_t>(i)};
    const double expected = meaning(x.bits, fraction_bits<T>());
    const float value = to_float(x);
    if (std::isnan(expected)) {
      CHECK(std::isnan(value));
      CHECK(std::isnan(to_float(rounded<T>(value))));
    } else {
      CHECK(number(value) == expected);
      CHECK(rounded<T>(value).bits == x.bits);
    }
  }
}

// Each number, the points half-way between neighbours, the floats next to those, and random bits.
template <class T>
std::vector<float> hard_to_round(const std::vector<double>& ordered) {
  std::vector<float> out = {0.0f,
                            65519.996f,
                            65520.0f,
                            3.3961775e38f,
                            1e-45f,
                            3.4028235e38f,
                            std::numeric_limits<float>::infinity()};
  for (size_t i = 0; i + 1 < ordered.size(); ++i) {
    const auto middle = static_cast<float>((ordered[i] + ordered[i + 1]) / 2);
    for (float x : {static_cast<float>(ordered[i]), middle}) {
      out.insert(out.end(), {x, std::nextafterf(x, 0.0f), std::nextafterf(x, 1e38f)});
    }
  }
  for (int i = 0; i < 1 << 18; ++i) {
    const float x = bits_float(static_cast<uint32_t>(generator()()));
    if (!std::isnan(x)) out.push_back(x);
  }
  const size_t positive = out.size();
  for (size_t i = 0; i < positive; ++i) out.push_back(-out[i]);
  return out;
}

// Stores through a kernel: dequantize_blockwise of 256 codes with the values as codebook.
template <class T>
void test_vector_rounding(const std::vector<float>& values, const std::vector<double>& ordered) {
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  const float one = 1.0f;
  std::vector<T> out(256);
  for (size_t start = 0; start + 256 <= values.size(); start += 256) {
    const float* code = values.data() + start;
    dequantize_blockwise(codes.data(), &one, 256, code, 256, out.data(), dtype_of<T>(), nullptr);
    for (int i = 0; i < 256; ++i) CHECK(out[i].bits == naive_round<T>(code[i], ordered));
  }
}

// NaN stays NaN, whatever bits it carries: rounding up the largest would make a zero of it.
template <class T>
void test_vector_nan() {
  const uint32_t patterns[] = {0x7fc00000, 0x7fffffff, 0xffffffff, 0x7f800001, 0xff80ffff};
  std::vector<float> code(256);
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) {
    code[i] = bits_float(patterns[i % 5]);
    codes[i] = static_cast<uint8_t>(i);
  }
  const float one = 1.0f;
  std::vector<T> out(256);
  dequantize_blockwise(codes.data(), &one, 256, code.data(), 256, out.data(), dtype_of<T>(),
                       nullptr);
  for (T x : out) CHECK(std::isnan(number(x)));
}

// Loads through a kernel: the absmax of rows of one pattern each.
template <class T>
void test_vector_loads() {
  const int64_t rows = 0x10000, columns = 64;
  std::vector<T> values(rows * columns);
  for (int64_t i = 0; i < rows * columns; ++i) values[i].bits = static_cast<uint16_t>(i / columns);
  std::vector<int8_t> codes(rows * columns);
  std::vector<float> stats(rows);
  int8_vectorwise_quant(values.data(), dtype_of<T>(), rows, columns, 0.0f, codes.data(),
                        stats.data(), nullptr, nullptr);
  for (int64_t i = 0; i < rows; ++i) {
    const double expected = std::fabs(meaning(static_cast<uint16_t>(i), fraction_bits<T>()));
    CHECK(std::isfinite(expected) ? number(stats[i]) == expected : std::isnan(stats[i]));
  }
}

template <class T>
void test_type() {
  const std::vector<double> ordered = magnitudes<T>();
  const std::vector<float> values = hard_to_round<T>(ordered);
  context = "scalar conversions";
  test_every_pattern<T>();
  for (float x : values) CHECK(rounded<T>(x).bits == naive_round<T>(x, ordered));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(to_float(rounded<T>(nan))));
  CHECK(std::isnan(to_float(rounded<T>(bits_float(0x7f800001u)))));
  for_each_isa([&] {
    test_vector_rounding<T>(values, ordered);
    test_vector_nan<T>();
    test_vector_loads<T>();
  });
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::test_type<bnbx::float16>();
  bnbx::test::test_type<bnbx::bfloat16>();
  return bnbx::test::result();
}
