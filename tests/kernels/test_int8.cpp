// The operations of LLM.int8().
#include "check.h"

namespace bnbx::test {
namespace {

bool is_outlier(double x, float threshold) {
  return threshold > 0.0f && std::fabs(x) >= number(threshold);
}

// Values of A with its outliers set to zero, and the columns that hold one.
template <class T>
struct Kept {
  std::vector<float> values;
  std::vector<uint8_t> outliers;

  Kept(const std::vector<T>& A, int64_t columns, float threshold)
      : values(A.size()), outliers(columns) {
    for (size_t i = 0; i < A.size(); ++i) {
      const bool outlier = is_outlier(number(A[i]), threshold);
      values[i] = outlier ? 0.0f : to_float(A[i]);
      if (outlier) outliers[i % columns] = 1;
    }
  }
};

bool is_rounded(int8_t code, double x, double absmax) {
  const double exact = x * 127.0 / std::fmax(absmax, 1e-36);
  return std::fabs(static_cast<double>(code) - exact) <= 0.50002;
}

template <class T>
void test_quant(int64_t rows, int64_t columns, float threshold) {
  const auto A = random_normal<T>(rows * columns, 2.0f);
  const Kept<T> kept(A, columns, threshold);
  std::vector<int8_t> by_row(rows * columns), again(rows * columns), by_column(rows * columns);
  std::vector<float> row_stats(rows), stats_again(rows), col_stats(columns);
  std::vector<uint8_t> outliers(columns, 9), outliers_again(columns, 9);
  const bool hold_back = threshold > 0.0f;
  int8_vectorwise_quant(A.data(), dtype_of<T>(), rows, columns, threshold, by_row.data(),
                        row_stats.data(), hold_back ? outliers.data() : nullptr, nullptr);
  int8_double_quant(A.data(), dtype_of<T>(), rows, columns, threshold, again.data(),
                    by_column.data(), stats_again.data(), col_stats.data(),
                    hold_back ? outliers_again.data() : nullptr, nullptr);
  CHECK(again == by_row);
  CHECK(stats_again == row_stats);
  CHECK(outliers_again == outliers);
  if (hold_back) CHECK(outliers == kept.outliers);
  std::vector<float> column(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const double absmax = naive_absmax(kept.values.data() + r * columns, columns);
    CHECK(number(row_stats[r]) == absmax);
    for (int64_t c = 0; c < columns; ++c) {
      const double x = kept.outliers[c] ? 0.0 : number(kept.values[r * columns + c]);
      CHECK(is_rounded(by_row[r * columns + c], x, absmax));
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) column[r] = kept.values[r * columns + c];
    const double absmax = naive_absmax(column.data(), rows);
    CHECK(number(col_stats[c]) == absmax);
    for (int64_t r = 0; r < rows; ++r) {
      CHECK(is_rounded(by_column[r * columns + c], number(column[r]), absmax));
    }
  }
}

void test_dequant(int64_t rows, int64_t columns) {
  const auto codes = random_bytes<int8_t>(rows * columns);
  const auto stats = random_positive(rows);
  std::vector<float> out(rows * columns);
  int8_vectorwise_dequant(codes.data(), stats.data(), rows, columns, out.data(), nullptr);
  for (int64_t i = 0; i < rows * columns; ++i) {
    const double exact = codes[i] * number(stats[i / columns]) / 127.0;
    CHECK(close(out[i], exact, 2 * eps<float>() * std::fabs(exact)));
  }
}

// A value that is not finite takes the scales of its row and its column, and their codes are zero.
// With a threshold an infinity is an outlier, and takes nothing but its own code.
template <class T>
void test_not_finite(int64_t columns, float threshold, float bad) {
  const int64_t rows = 3;
  auto A = random_normal<T>(rows * columns);
  A[columns + columns / 2] = rounded<T>(bad);  // in row 1
  std::vector<int8_t> by_row(rows * columns, 9), by_column(rows * columns, 9);
  std::vector<float> row_stats(rows), col_stats(columns);
  std::vector<uint8_t> outliers(columns);
  int8_double_quant(A.data(), dtype_of<T>(), rows, columns, threshold, by_row.data(),
                    by_column.data(), row_stats.data(), col_stats.data(),
                    threshold > 0.0f ? outliers.data() : nullptr, nullptr);
  const bool outlier = threshold > 0.0f && std::isinf(bad);
  for (int64_t i = 0; i < rows * columns; ++i) {
    const bool bad_row = i / columns == 1, bad_column = i % columns == columns / 2;
    CHECK(std::isnan(row_stats[i / columns]) == (bad_row && !outlier));
    CHECK(std::isnan(col_stats[i % columns]) == (bad_column && !outlier));
    if ((bad_row && !outlier) || (bad_column && outlier)) CHECK(by_row[i] == 0);
    if (bad_column && (bad_row || !outlier)) CHECK(by_column[i] == 0);
  }
}

// Codes half-way between two integers are even. An absmax of 127 makes codes of the values.
void test_ties() {
  std::vector<float> row = {127.0f};
  for (int i = -127; i < 127; ++i) row.push_back(static_cast<float>(i) + 0.5f);
  const auto n = static_cast<int64_t>(row.size());
  std::vector<int8_t> codes(n);
  float absmax = 0.0f;
  int8_vectorwise_quant(row.data(), DType::kFloat32, 1, n, 0.0f, codes.data(), &absmax, nullptr,
                        nullptr);
  for (int64_t i = 1; i < n; ++i) {
    CHECK(codes[i] % 2 == 0);
    CHECK(std::fabs(number(row[i]) - codes[i]) == 0.5);
  }
}

struct Operands {
  int64_t M, N, K;
  std::vector<int8_t> A, B;
  std::vector<float> row_stats, col_stats;
  std::vector<int32_t> sums;  // naive

  Operands(int64_t m, int64_t n, int64_t k)
      : M(m),
        N(n),
        K(k),
        A(random_bytes<int8_t>(m * k)),
        B(random_bytes<int8_t>(n * k)),
        row_stats(random_positive(m)),
        col_stats(random_positive(n)),
        sums(m * n) {
    for (int64_t i = 0; i < M * N; ++i) {
      for (int64_t j = 0; j < K; ++j) sums[i] += A[i / N * K + j] * B[i % N * K + j];
    }
  }
  double scaled(int64_t i) const {
    return sums[i] * number(row_stats[i / N]) * number(col_stats[i % N]) / (127.0 * 127.0);
  }
};

// The largest products, of which two do not fit 16 bits and 2^17 do not fit 31.
void test_extremes(int64_t K) {
  const int64_t M = 3, N = 5;
  for (int8_t a : {-128, 127}) {
    for (int8_t b : {-128, 127}) {
      const std::vector<int8_t> A(M * K, a), B(N * K, b);
      std::vector<int32_t> sums(M * N);
      int8_linear_matmul(A.data(), B.data(), M, N, K, sums.data(), nullptr);
      for (int32_t sum : sums) CHECK(sum == K * a * b);
    }
  }
}

template <class T, class U>
void test_epilogues(const Operands& x, bool with_bias) {
  const auto bias = random_normal<U>(x.N);
  const Bias given{with_bias ? bias.data() : nullptr, dtype_of<U>()};
  std::vector<T> from_sums(x.M * x.N), in_one(x.M * x.N);
  int8_mm_dequant(x.sums.data(), x.row_stats.data(), x.col_stats.data(), x.M, x.N, given,
                  from_sums.data(), dtype_of<T>(), nullptr);
  int8_scaled_mm(x.A.data(), x.B.data(), x.M, x.N, x.K, x.row_stats.data(), x.col_stats.data(),
                 given, in_one.data(), dtype_of<T>(), nullptr);
  for (int64_t i = 0; i < x.M * x.N; ++i) {
    const double added = with_bias ? number(bias[i % x.N]) : 0.0;
    const double error = 8 * eps<float>() * (std::fabs(x.scaled(i)) + std::fabs(added));
    CHECK(close(from_sums[i], x.scaled(i) + added, error));
    CHECK(close(in_one[i], x.scaled(i) + added, error));
  }
}

// int8_mixed_scaled_mm and int8_linear: the inliers' product plus the outlier columns.
template <class T>
void test_mixed(int64_t M, int64_t N, int64_t K, float threshold) {
  const auto A = random_normal<T>(M * K, 2.0f);
  const auto bias = random_normal<T>(N);
  const Operands x(M, N, K);
  std::vector<int8_t> codes(M * K), workspace(M * K);
  std::vector<float> stats(M), stats_workspace(M);
  std::vector<uint8_t> outliers(K), outliers_workspace(K);
  int8_vectorwise_quant(A.data(), dtype_of<T>(), M, K, threshold, codes.data(), stats.data(),
                        threshold > 0.0f ? outliers.data() : nullptr, nullptr);
  std::vector<int64_t> columns;
  for (int64_t k = 0; k < K; ++k) {
    if (outliers[k]) columns.push_back(k);
  }
  std::vector<T> mixed(M * N), linear(M * N);
  const Bias given{bias.data(), dtype_of<T>()};
  int8_mixed_scaled_mm(A.data(), dtype_of<T>(), codes.data(), x.B.data(), M, N, K, stats.data(),
                       x.col_stats.data(), columns.data(), static_cast<int64_t>(columns.size()),
                       given, mixed.data(), nullptr);
  int8_linear(A.data(), dtype_of<T>(), M, N, K, x.B.data(), x.col_stats.data(), threshold, given,
              workspace.data(), stats_workspace.data(), outliers_workspace.data(), linear.data(),
              nullptr);
  for (int64_t i = 0; i < M * N; ++i) {
    const int64_t m = i / N, n = i % N;
    const double scale = number(x.col_stats[n]) / 127.0;
    double sum = 0.0, outer = 0.0, squares = 0.0;
    for (int64_t k = 0; k < K; ++k) {
      sum += codes[m * K + k] * x.B[n * K + k];
      const double term = outliers[k] ? number(A[m * K + k]) * x.B[n * K + k] * scale : 0.0;
      outer += term;
      squares += term * term;
    }
    const double inner = sum * number(stats[m]) / 127.0 * scale;
    const double error = std::sqrt(squares) * (eps<T>() + 32 * eps<float>()) +
                         32 * eps<float>() * (std::fabs(inner) + std::fabs(number(bias[n])));
    CHECK(close(mixed[i], inner + outer + number(bias[n]), error));
    CHECK(close(linear[i], inner + outer + number(bias[n]), error));
  }
}

void test_products(int64_t M, int64_t N, int64_t K) {
  const Operands x(M, N, K);
  std::vector<int32_t> sums(M * N, 9);
  int8_linear_matmul(x.A.data(), x.B.data(), M, N, K, sums.data(), nullptr);
  CHECK(sums == x.sums);
  for_each_type([&](auto type) {
    using T = decltype(type);
    for_each_type([&](auto bias_type) { test_epilogues<T, decltype(bias_type)>(x, true); });
    test_epilogues<T, float>(x, false);
    for (float threshold : {0.0f, 3.0f}) test_mixed<T>(M, N, K, threshold);
  });
}

void test_all() {
  for_each_type([](auto type) {
    using T = decltype(type);
    for (int64_t columns : {0, 1, 7, 16, 33, 70}) {
      for (float threshold : {0.0f, 1.5f, 100.0f}) {
        test_quant<T>(0, columns, threshold);
        test_quant<T>(5, columns, threshold);
      }
    }
    test_quant<T>(301, 130, 3.0f);
    test_quant<T>(1, 130, 3.0f);
    test_quant<T>(2, 8208, 3.0f);  // longer than what a block of a GPU keeps in registers
    const float infinity = std::numeric_limits<float>::infinity();
    for (int64_t columns : {1, 8, 33, 70}) {
      for (float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
        for (float threshold : {0.0f, 6.0f}) test_not_finite<T>(columns, threshold, bad);
      }
    }
  });
  test_ties();
  for (int64_t columns : {0, 1, 7, 16, 33, 70}) test_dequant(5, columns);
  for (int64_t M : {0, 1, 3, 17}) test_products(M, 7, 70);
  for (int64_t N : {0, 1, 4, 33}) test_products(3, N, 65);
  for (int64_t K : {0, 1, 15, 64, 1027}) test_products(2, 5, K);
  for (int64_t K : {16, 64, 1027, 70000}) test_extremes(K);
  test_products(33, 65, 300);
  test_products(17, 290, 64);
  test_products(9, 40, 1100);
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
