// Products with 4-bit weights in the largest tile, with any number of blocks that share the depth,
// and of few rows with more rows of the weight than there are blocks: the operations choose them
// for weights too large for the emulator.
#include "check.h"
#include "cuda/launch_4bit.h"

namespace bnbx::test {
namespace {

// out (M, N) = A (M, K) times the transpose of the weight, or out (M, K) = A (M, N) times it.
template <class T>
struct Product {
  bool transposed;
  int64_t M, N, K, depth, width;
  std::vector<T> A, out;
  std::vector<uint8_t> packed;
  std::vector<float> absmax;

  Product(bool is_transposed, int64_t m, int64_t n, int64_t k)
      : transposed(is_transposed),
        M(m),
        N(n),
        K(k),
        depth(transposed ? N : K),
        width(transposed ? K : N),
        A(random_normal<T>(M * depth)),
        out(M * width),
        packed(random_bytes<uint8_t>((N * K + 1) / 2)),
        absmax(random_positive((N * K + 31) / 32)) {}

  gpu::Product4 on_device() {
    const BlockScales scales{absmax.data(), 32, nullptr, nullptr, nullptr, 1};
    return gpu::make_product(A.data(), dtype_of<T>(), M, nullptr, 1, N, K, packed.data(), scales,
                             QuantType::kNF4, nullptr, out.data(), transposed);
  }

  double weight(int64_t n, int64_t k) const {
    const int64_t i = n * K + k;
    const int code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
    return static_cast<double>(kNF4.values[code]) * absmax[i / 32];
  }

  // Compares `count` of the outputs, anywhere, and the last.
  void check_some(int64_t count) const {
    for (int64_t i = 0; i <= count; ++i) {
      const int64_t at = i < count ? random_below(M * width) : M * width - 1;
      const int64_t m = at / width, column = at % width;
      double exact = 0.0, squares = 0.0;
      for (int64_t k = 0; k < depth; ++k) {
        const double w = transposed ? weight(k, column) : weight(column, k);
        const double term = number(A[m * depth + k]) * w;
        exact += term;
        squares += term * term;
      }
      CHECK(close(out[at], exact, std::sqrt(squares) * (eps<T>() + 32 * eps<float>())));
    }
  }
};

template <class T, class Tile, bool kTransposed>
void test_tile(int64_t M, int64_t N, int64_t K, int64_t splits = 1) {
  Product<T> product(kTransposed, M, N, K);
  auto p = product.on_device();
  std::vector<float> workspace(splits * M * product.width);
  p.workspace = workspace.data();
  gpu::launch_tile<T, Tile, kTransposed>(p, splits, nullptr);
  product.check_some(2000);
}

template <class T, int kM>
void test_gemv(int64_t M, int64_t N, int64_t K) {
  Product<T> product(false, M, N, K);
  gpu::launch_gemv<T, kM>(product.on_device(), nullptr);
  product.check_some(2000);
}

template <class T>
void test_large() {
  for (int64_t K : {64, 160, 352, 131}) {
    test_tile<T, gpu::LargeTile, false>(130, 129, K);
    test_tile<T, gpu::LargeTile, true>(130, K, 160);
  }
  test_tile<T, gpu::LargeTile, true>(3, 70, 135);
  // As many blocks as there are steps of the depth, fewer, and more.
  for (int64_t splits : {2, 3, 5, 7}) {
    test_tile<T, gpu::LargeTile, false>(130, 129, 320, splits);
    test_tile<T, gpu::LargeTile, true>(3, 259, 135, splits);
  }
}

// Parts of a tile in every direction: rows of activations, rows of the weight, and units of the
// depth, so that some groups have none; and steps of the depth for every stage, shared or not.
template <class T, class Tile>
void test_operands() {
  const int64_t M = Tile::kRows + 3, N = Tile::kWidth + 5;
  for (int64_t K : {32, 64, 160, 6 * Tile::kDepth, 4 * Tile::kDepth + 32}) {
    test_tile<T, Tile, false>(M, N, K);
  }
  test_tile<T, Tile, false>(1, 7, 64);
  for (int64_t splits : {2, 3, 4}) test_tile<T, Tile, false>(M, N, 3 * Tile::kDepth - 32, splits);
}

template <class T>
void test_all_operands() {
  test_operands<T, gpu::Operands8>();
  test_operands<T, gpu::Operands16>();
  test_operands<T, gpu::Operands32>();
  test_operands<T, gpu::Operands64>();
}

// What devices with little shared memory have for every product.
template <class T>
void test_small() {
  test_tile<T, gpu::SmallTile, false>(37, 65, 250);
  test_tile<T, gpu::SmallTile, true>(18, 70, 131);
}

void test_splits_of_floats() {
  for (int64_t splits : {2, 4, 6}) {
    test_tile<float, gpu::FloatTile16, false>(5, 65, 250, splits);
    test_tile<float, gpu::FloatTile64, true>(67, 250, 65, splits);
  }
}

// One wave of blocks at most, none for fewer than 1024 columns, and none without a step.
void test_count_of_splits() {
  const int64_t room = 2 * gpu::multiprocessors();
  using Tile = gpu::FloatTile64;
  const auto count = [](int64_t M, int64_t N, int64_t K) {
    return gpu::count_splits<float, Tile>(gpu::sizes_of_product(M, N, K), N, K);
  };
  CHECK(count(5, 60, 2047) == 1);
  CHECK(count(5, 60, 2048) == 2);
  CHECK(count(5, 60, 1 << 20) == room);
  CHECK(count(64 * room, 64, 1 << 20) == 1);
  CHECK(count(32 * room, 64, 1 << 20) == 2);
  CHECK(count(0, 64, 4096) == 1 && count(5, 0, 4096) == 1 && count(5, 64, 0) == 1);
  auto stack = gpu::sizes_of_product(5, 60, 4096);
  const int64_t end = 5;
  stack.ends = &end;
  CHECK((gpu::count_splits<float, Tile>(stack, 60, 4096)) == 1);
}

void test_all() {
  test_large<float16>();
  test_large<bfloat16>();
  test_all_operands<float16>();
  test_all_operands<bfloat16>();
  test_small<float16>();
  test_small<bfloat16>();
  test_splits_of_floats();
  test_count_of_splits();
  for_each_type([](auto type) {
    using T = decltype(type);
    test_gemv<T, 1>(1, 2 * gpu::kGemvBlocks * gpu::kGemvWidth + 9, 32);
    test_gemv<T, 2>(3, gpu::kGemvBlocks * gpu::kGemvWidth + 1, 64);
    // More columns than are staged at once.
    test_gemv<T, 4>(4, 9, 3 * gpu::GemvShape<4>::kDepth + 32);
    test_gemv<T, 2>(2, 9, 3 * gpu::GemvShape<2>::kDepth + 32);
    test_gemv<T, 4>(7, gpu::kGemvBlocks * gpu::kGemvWidth + 5, 96);
  });
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
