// quantize_blockwise and dequantize_blockwise.
#include <algorithm>
#include <stdexcept>

#include "check.h"

namespace bnbx::test {
namespace {

// Ascending codebooks: even steps, steps that grow with the magnitude, and random with ties.
std::vector<std::vector<float>> codebooks() {
  std::vector<std::vector<float>> out(3, std::vector<float>(256));
  for (int i = 0; i < 256; ++i) {
    const float x = static_cast<float>(i) / 127.5f - 1.0f;
    out[0][i] = x;
    out[1][i] = std::copysign(std::pow(std::fabs(x), 9.0f), x);
    out[2][i] = static_cast<float>(random_below(40)) / 20.0f - 1.0f;
  }
  std::sort(out[2].begin(), out[2].end());
  return out;
}

template <class T>
void test_quantize(int64_t n, int64_t blocksize, const std::vector<float>& code,
                   int64_t bad_element, float scale = 1.0f) {
  std::vector<T> values = random_normal<T>(n, scale);
  if (bad_element < n) values[bad_element] = rounded<T>(std::numeric_limits<float>::quiet_NaN());
  std::vector<uint8_t> codes(n);
  std::vector<float> absmax(blocks_of(n, blocksize), -1.0f);
  quantize_blockwise(values.data(), dtype_of<T>(), n, code.data(), blocksize, codes.data(),
                     absmax.data(), nullptr);
  for (int64_t b = 0; b < blocks_of(n, blocksize); ++b) {
    const int64_t start = b * blocksize, count = std::min(blocksize, n - start);
    const double expected = naive_absmax(values.data() + start, count);
    CHECK(close(absmax[b], expected, 0.0));
    if (std::isnan(expected)) continue;
    for (int64_t i = start; i < start + count; ++i) {
      const double x = number(values[i]) / std::fmax(expected, 1e-38);
      CHECK(is_nearest(number(code[codes[i]]), x, code.data(), 256));
    }
  }
}

template <class T>
void test_dequantize(int64_t n, int64_t blocksize, const std::vector<float>& code) {
  const auto codes = random_bytes<uint8_t>(n);
  std::vector<float> absmax = random_positive(blocks_of(n, blocksize));
  if (!absmax.empty()) absmax.back() = std::numeric_limits<float>::quiet_NaN();
  std::vector<T> out(n);
  dequantize_blockwise(codes.data(), absmax.data(), n, code.data(), blocksize, out.data(),
                       dtype_of<T>(), nullptr);
  for (int64_t i = 0; i < n; ++i) {
    const float expected = code[codes[i]] * absmax[i / blocksize];
    CHECK(std::isnan(expected) ? std::isnan(number(out[i]))
                               : number(out[i]) == number(rounded<T>(expected)));
  }
}

// The index is that of the last boundary below the value: ties take the lower entry.
void test_ties(const std::vector<float>& code) {
  std::vector<float> bounds(255);
  for (int i = 0; i < 255; ++i) bounds[i] = (code[i] + code[i + 1]) / 2.0f;
  std::vector<float> values = {1.0f};  // the absmax
  for (float x : bounds) values.insert(values.end(), {x, std::nextafterf(x, 2.0f)});
  const auto n = static_cast<int64_t>(values.size());
  std::vector<uint8_t> codes(n);
  float absmax = 0.0f;
  quantize_blockwise(values.data(), DType::kFloat32, n, code.data(), 1024, codes.data(), &absmax,
                     nullptr);
  CHECK(absmax == 1.0f);
  for (int64_t i = 0; i < n; ++i) {
    const auto below = std::lower_bound(bounds.begin(), bounds.end(), values[i]) - bounds.begin();
    CHECK(codes[i] == below);
  }
}

void test_order(std::vector<float> code) {
  std::swap(code[100], code[140]);
  float value = 1.0f, absmax = 0.0f;
  uint8_t out = 0;
  bool thrown = false;
  try {
    quantize_blockwise(&value, DType::kFloat32, 1, code.data(), 64, &out, &absmax, nullptr);
  } catch (const std::exception&) {
    thrown = true;
  }
  CHECK(thrown != kForGpus);
}

void test_all() {
  const auto books = codebooks();
  for (const auto& code : books) {
    for_each_type([&](auto type) {
      using T = decltype(type);
      for (int64_t blocksize : {1, 7, 64, 100, 256, 4096}) {
        for (int64_t n : {0, 1, 15, 33, 257, 1001}) {
          test_quantize<T>(n, blocksize, code, n);
          test_quantize<T>(n, blocksize, code, n / 2);
          test_dequantize<T>(n, blocksize, code);
        }
      }
      for (float scale : {0.0f, 1e-40f, 1e30f}) test_quantize<T>(1001, 64, code, 500, scale);
    });
    test_ties(code);
  }
  test_order(books[0]);
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
