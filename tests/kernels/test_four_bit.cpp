// quantize_4bit, dequantize_4bit and the products with 4-bit weights.
#include <numeric>

#include "check.h"

namespace bnbx::test {
namespace {

constexpr QuantType kQuantTypes[] = {QuantType::kNF4, QuantType::kFP4};

const float* table_of(QuantType quant_type) {
  return quant_type == QuantType::kNF4 ? kNF4.values : kFP4.values;
}

// Two codes a byte, the first in the high nibble.
int code_at(const std::vector<uint8_t>& packed, int64_t i) {
  return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
}

template <class T>
void test_quantize(int64_t n, int64_t blocksize, QuantType quant_type, int64_t bad_element,
                   float scale = 1.0f) {
  const float* table = table_of(quant_type);
  std::vector<T> values = random_normal<T>(n, scale);
  if (bad_element < n) values[bad_element] = rounded<T>(std::numeric_limits<float>::infinity());
  std::vector<uint8_t> packed((n + 1) / 2, 0xaa);
  std::vector<float> absmax(blocks_of(n, blocksize), -1.0f);
  quantize_4bit(values.data(), dtype_of<T>(), n, blocksize, quant_type, packed.data(),
                absmax.data(), nullptr);
  for (int64_t b = 0; b < blocks_of(n, blocksize); ++b) {
    const int64_t start = b * blocksize, count = std::min(blocksize, n - start);
    const double expected = naive_absmax(values.data() + start, count);
    CHECK(close(absmax[b], expected, 0.0));
    if (std::isnan(expected)) continue;
    for (int64_t i = start; i < start + count; ++i) {
      const double x = number(values[i]) / std::fmax(expected, 1e-38);
      CHECK(is_nearest(number(table[code_at(packed, i)]), x, table, 16));
    }
  }
}

template <class T>
void test_dequantize(int64_t n, int64_t blocksize, QuantType quant_type) {
  const auto packed = random_bytes<uint8_t>((n + 1) / 2);
  std::vector<float> absmax = random_positive(blocks_of(n, blocksize));
  if (!absmax.empty()) absmax.back() = std::numeric_limits<float>::quiet_NaN();
  std::vector<T> out(n);
  dequantize_4bit(packed.data(), absmax.data(), n, blocksize, quant_type, out.data(), dtype_of<T>(),
                  nullptr);
  for (int64_t i = 0; i < n; ++i) {
    const float expected = table_of(quant_type)[code_at(packed, i)] * absmax[i / blocksize];
    CHECK(std::isnan(expected) ? std::isnan(number(out[i]))
                               : number(out[i]) == number(rounded<T>(expected)));
  }
}

// A random weight (N, K) whose scales are plain or nested.
struct Weight {
  std::vector<uint8_t> packed, absmax_8bit;
  std::vector<float> absmax, code;
  float offset = 0.75f;
  BlockScales scales;

  Weight(int64_t N, int64_t K, int64_t blocksize, int64_t nested_blocksize) {
    const int64_t blocks = blocks_of(N * K, blocksize);
    packed = random_bytes<uint8_t>((N * K + 1) / 2);
    scales = {nullptr, blocksize, nullptr, nullptr, nullptr, 1};
    if (nested_blocksize > 0) {
      absmax = random_positive(blocks_of(blocks, nested_blocksize));
      absmax_8bit = random_bytes<uint8_t>(blocks);
      code = random_positive(256);
      scales = {nullptr, blocksize, absmax_8bit.data(), code.data(), &offset, nested_blocksize};
    } else {
      absmax = random_positive(blocks);
    }
    scales.absmax = absmax.data();
  }

  double value(int64_t i, QuantType quant_type) const {
    const int64_t block = i / scales.blocksize;
    double scale = 0.0;
    if (absmax_8bit.empty()) {
      scale = number(absmax[block]);
    } else {
      scale = number(code[absmax_8bit[block]]) * number(absmax[block / scales.absmax_blocksize]) +
              number(offset);
    }
    return number(table_of(quant_type)[code_at(packed, i)]) * scale;
  }
};

// The error that rounding may make of a sum of terms, of which `squares` is the sum of the squares:
// a kernel may round the weight to T, and the errors of the terms add up like a random walk. Where
// the 16 values of a block all round badly, its standard deviation is half of eps: four of them.
template <class T>
double error_of_sum(double squares) {
  return std::sqrt(squares) * (2 * eps<T>() + 32 * eps<float>());
}

template <class T>
void test_gemm(int64_t M, int64_t N, int64_t K, int64_t blocksize, int64_t nested_blocksize,
               QuantType quant_type) {
  const auto A = random_normal<T>(M * K);
  const auto bias = random_normal<T>(N);
  const Weight weight(N, K, blocksize, nested_blocksize);
  std::vector<T> out(M * N);
  std::vector<float> workspace(gemm_4bit_workspace(dtype_of<T>(), M, N, K));
  const bool with_bias = nested_blocksize == 0;
  gemm_4bit(A.data(), dtype_of<T>(), M, N, K, weight.packed.data(), weight.scales, quant_type,
            with_bias ? bias.data() : nullptr, out.data(), workspace.data(), nullptr);
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double exact = with_bias ? number(bias[n]) : 0.0, squares = 0.0;
      for (int64_t k = 0; k < K; ++k) {
        const double term = number(A[m * K + k]) * weight.value(n * K + k, quant_type);
        exact += term;
        squares += term * term;
      }
      CHECK(close(out[m * N + n], exact, error_of_sum<T>(squares)));
    }
  }
}

template <class T>
void test_gemm_transposed(int64_t M, int64_t N, int64_t K, int64_t blocksize,
                          int64_t nested_blocksize, QuantType quant_type) {
  const auto A = random_normal<T>(M * N);
  const Weight weight(N, K, blocksize, nested_blocksize);
  std::vector<T> out(M * K);
  std::vector<float> workspace(gemm_4bit_transposed_workspace(dtype_of<T>(), M, N, K));
  gemm_4bit_transposed(A.data(), dtype_of<T>(), M, N, K, weight.packed.data(), weight.scales,
                       quant_type, out.data(), workspace.data(), nullptr);
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t k = 0; k < K; ++k) {
      double exact = 0.0, squares = 0.0;
      for (int64_t n = 0; n < N; ++n) {
        const double term = number(A[m * N + n]) * weight.value(n * K + k, quant_type);
        exact += term;
        squares += term * term;
      }
      CHECK(close(out[m * K + k], exact, error_of_sum<T>(squares)));
    }
  }
}

template <class T>
void test_products(int64_t M, int64_t N, int64_t K, int64_t blocksize, int64_t nested_blocksize,
                   QuantType quant_type) {
  test_gemm<T>(M, N, K, blocksize, nested_blocksize, quant_type);
  test_gemm_transposed<T>(M, N, K, blocksize, nested_blocksize, quant_type);
}

// A stack of weights: each expert's rows are what its product alone gives, to the bit on a CPU; on
// a GPU the numbers of rows choose the tiles, and these the order of the sums. The blocks are those
// of the stack, so an expert's product alone needs them to begin with it.
template <class T>
void test_grouped(const std::vector<int64_t>& rows, int64_t N, int64_t K, QuantType quant_type) {
  const int64_t E = static_cast<int64_t>(rows.size());
  const int64_t M = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  const Weight stack(E * N, K, 64, 0);
  const auto A = random_normal<T>(M * K), A_transposed = random_normal<T>(M * N);
  const auto bias = random_normal<T>(E * N);
  std::vector<T> out(M * N), alone(M * N), transposed(M * K), transposed_alone(M * K);
  std::vector<int64_t> ends(rows.size());
  std::partial_sum(rows.begin(), rows.end(), ends.begin());
  gemm_4bit_grouped(A.data(), dtype_of<T>(), M, ends.data(), E, N, K, stack.packed.data(),
                    stack.scales, quant_type, bias.data(), out.data(), nullptr);
  gemm_4bit_grouped_transposed(A_transposed.data(), dtype_of<T>(), M, ends.data(), E, N, K,
                               stack.packed.data(), stack.scales, quant_type, transposed.data(),
                               nullptr);
  for (int64_t e = 0; e < E; ++e) {
    const int64_t first = ends[e] - rows[e];
    BlockScales scales = stack.scales;
    scales.absmax += e * N * K / 64;
    const uint8_t* B = stack.packed.data() + e * N * K / 2;
    gemm_4bit(A.data() + first * K, dtype_of<T>(), rows[e], N, K, B, scales, quant_type,
              bias.data() + e * N, alone.data() + first * N, nullptr, nullptr);
    gemm_4bit_transposed(A_transposed.data() + first * N, dtype_of<T>(), rows[e], N, K, B, scales,
                         quant_type, transposed_alone.data() + first * K, nullptr, nullptr);
  }
  const auto same = [](T actual, T expected, int64_t depth) {
    // Terms of standard normal activations and of weights of at most 2.
    const double error = kForGpus ? error_of_sum<T>(4.0 * number(static_cast<float>(depth))) : 0.0;
    return close(actual, number(expected), error);
  };
  for (int64_t i = 0; i < M * N; ++i) CHECK(same(out[i], alone[i], K));
  for (int64_t i = 0; i < M * K; ++i) CHECK(same(transposed[i], transposed_alone[i], N));
}

// A NaN among the activations takes the outputs of its row, a NaN among the scales, here the last,
// those of its column; the rest is as without them.
template <class T>
void test_not_finite(int64_t M, int64_t N, int64_t K, QuantType quant_type) {
  auto A = random_normal<T>(M * K);
  Weight weight(N, K, 64, 0);
  std::vector<T> clean(M * N), out(M * N);
  const auto product = [&](std::vector<T>& result) {
    gemm_4bit(A.data(), dtype_of<T>(), M, N, K, weight.packed.data(), weight.scales, quant_type,
              nullptr, result.data(), nullptr, nullptr);
  };
  product(clean);
  A.back() = rounded<T>(std::numeric_limits<float>::quiet_NaN());
  weight.absmax.back() = std::numeric_limits<float>::quiet_NaN();
  product(out);
  for (int64_t i = 0; i < M * N; ++i) {
    const bool lost = i / N == M - 1 || i % N == N - 1;
    CHECK(lost ? std::isnan(number(out[i])) : number(out[i]) == number(clean[i]));
  }
}

void test_all() {
  for (QuantType quant_type : kQuantTypes) {
    for_each_type([&](auto type) {
      using T = decltype(type);
      for (int64_t blocksize : {32, 64, 128, 256, 512, 1024, 2048, 4096}) {
        for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, blocksize + 5, 3 * blocksize}) {
          test_quantize<T>(n, blocksize, quant_type, n);
          test_quantize<T>(n, blocksize, quant_type, n / 2);
          test_dequantize<T>(n, blocksize, quant_type);
        }
      }
      for (float scale : {0.0f, 1e-40f, 1e30f}) test_quantize<T>(1001, 64, quant_type, 500, scale);
      for (int64_t M : {1, 3, 17}) test_not_finite<T>(M, 5, 192, quant_type);
      for (int64_t M : {0, 1, 2, 3, 5, 17}) test_products<T>(M, 7, 70, 64, 0, quant_type);
      for (int64_t M : {1, 2, 3, 4, 17}) test_products<T>(M, 7, 192, 64, 5, quant_type);
      for (int64_t N : {0, 1, 4, 33}) test_products<T>(3, N, 129, 32, 256, quant_type);
      for (int64_t K : {0, 1, 31, 64, 1027}) test_products<T>(2, 5, K, 64, 3, quant_type);
      for (int64_t K : {64, 192, 130}) {
        test_grouped<T>({}, 32, K, quant_type);
        test_grouped<T>({1, 0, 3, 5, 0}, 32, K, quant_type);
        test_grouped<T>({0, 33, 2}, 160, K, quant_type);
      }
      test_products<T>(33, 65, 300, 128, 0, quant_type);
      test_products<T>(17, 290, 64, 64, 256, quant_type);
      test_products<T>(130, 33, 320, 128, 0, quant_type);
      test_gemm<T>(6, 7, 2112, 64, 0, quant_type);
      test_gemm_transposed<T>(6, 2112, 7, 64, 0, quant_type);
    });
  }
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
