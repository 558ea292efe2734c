// The int8 products in every tile, of which int8_linear_matmul and its relatives choose by size:
// the tests of those would need matrices that take the emulator hours to reach the largest.
#include "check.h"
#include "cuda/int8_dispatch.h"
#include "cuda/int8_epilogues.h"

namespace bnbx::test {
namespace {

// A product with codes of A that are zero in the columns held back, and its sums.
struct Operands {
  int64_t M, N, K;
  std::vector<int8_t> A, B;
  std::vector<uint8_t> flags;
  std::vector<int64_t> columns;
  std::vector<int32_t> sums;

  // `offset`: where the matrices begin in memory that is aligned to 16 bytes.
  Operands(int64_t m, int64_t n, int64_t k, int64_t offset, int64_t outliers)
      : M(m),
        N(n),
        K(k),
        A(random_bytes<int8_t>(m * k + offset)),
        B(random_bytes<int8_t>(n * k + offset)),
        flags(k),
        sums(m * n),
        offset_(offset) {
    for (int64_t i = 0; i < outliers; ++i) flags[random_below(K)] = 1;
    for (int64_t i = 0; i < K; ++i) {
      if (flags[i] != 0) columns.push_back(i);
      for (int64_t r = 0; r < M && flags[i] != 0; ++r) A[offset + r * K + i] = 0;
    }
    for (int64_t i = 0; i < M * N; ++i) {
      const int8_t *a = A.data() + offset + i / N * K, *b = B.data() + offset + i % N * K;
      for (int64_t j = 0; j < K; ++j) sums[i] += a[j] * b[j];
    }
  }
  gpu::Int8Operands on_device() const {
    return gpu::Int8Operands(A.data() + offset_, B.data() + offset_, M, N, K);
  }
  int8_t b(int64_t n, int64_t k) const { return B[offset_ + n * K + k]; }

 private:
  int64_t offset_;
};

template <class Tile>
void test_sums(const Operands& x) {
  std::vector<int32_t> sums(x.M * x.N, 9);
  const bool aligned = x.N % 4 == 0 && gpu::is_aligned(sums.data(), 16);
  gpu::multiply_in<Tile>(x.on_device(), gpu::StoreSums{sums.data(), aligned}, nullptr);
  CHECK(sums == x.sums);
}

// With the columns held back as flags, as a list, and without them.
template <class Tile, class T>
void test_scaled(const Operands& x) {
  const auto values = random_normal<T>(x.M * x.K, 3.0f);
  const auto bias = random_normal<T>(x.N);
  const auto row_stats = random_positive(x.M), col_stats = random_positive(x.N);
  const auto count = static_cast<int64_t>(x.columns.size());
  const gpu::Outliers<T> kinds[] = {{values.data(), x.flags.data(), nullptr, x.K},
                                    {values.data(), nullptr, x.columns.data(), count},
                                    {nullptr, nullptr, nullptr, 0}};
  for (const auto& outliers : kinds) {
    std::vector<T> out(x.M * x.N);
    const bool aligned = x.N * sizeof(T) % 16 == 0 && gpu::is_aligned(out.data(), 16);
    const gpu::Scale<T> epilogue{row_stats.data(), col_stats.data(), {bias.data(), dtype_of<T>()},
                                 out.data(),       aligned,          outliers};
    gpu::multiply_in<Tile>(x.on_device(), epilogue, nullptr);
    for (int64_t i = 0; i < x.M * x.N; ++i) {
      const int64_t m = i / x.N, n = i % x.N;
      const double row = number(row_stats[m]) / 127.0, column = number(col_stats[n]) / 127.0;
      double exact = x.sums[i] * row * column, error = std::fabs(exact), squares = 0.0;
      for (int64_t k : outliers.A == nullptr ? std::vector<int64_t>() : x.columns) {
        const double term = number(values[m * x.K + k]) * x.b(n, k) * column;
        exact += term;
        squares += term * term;
      }
      exact += number(bias[n]);
      error += std::fabs(number(bias[n])) + 2 * std::sqrt(squares);
      CHECK(close(out[i], exact, 8 * eps<float>() * error));
    }
  }
}

template <class Tile>
void test_tile(const char* name) {
  context = isa() + " " + name;
  const int64_t M = Tile::kRows, N = Tile::kColumns, step = Tile::kSplit * Tile::kDepth;
  test_sums<Tile>(Operands(M, N, 2 * step, 0, 0));
  test_sums<Tile>(Operands(M + 1, N + 1, step * Tile::kStages + step / 2 + 16, 0, 0));
  test_sums<Tile>(Operands(M - 1, N + 4, step + 1, 0, 0));
  test_sums<Tile>(Operands(1, 7, 5 * step, 3, 0));
  test_sums<Tile>(Operands(17 * M, 3, 16, 0, 0));  // more than a band of tiles
  test_sums<Tile>(Operands(3, 5, 0, 0, 0));
  for (int64_t outliers : {0, 1, 40}) {
    const Operands odd(M + 1, N - 1, step + 33, 0, outliers), even(M, 16, 2 * step, 0, outliers);
    for_each_type([&](auto type) {
      test_scaled<Tile, decltype(type)>(odd);
      test_scaled<Tile, decltype(type)>(even);
    });
  }
  // Flags for more than one list of columns.
  test_scaled<Tile, float16>(Operands(3, 5, Tile::kThreads * 16 + 100, 0, 60));
}

void test_all() {
  test_tile<gpu::Wide>("wide");
  test_tile<gpu::Large>("large");
  test_tile<gpu::Medium>("medium");
  test_tile<gpu::Small>("small");
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
