// estimate_quantiles.
#include <algorithm>

#include "check.h"

namespace bnbx::test {
namespace {

std::vector<int64_t> workspace() {
  return std::vector<int64_t>(estimate_quantiles_workspace(), -1);
}

// Each quantile lies between its neighbours among the sorted values, give or take 1/128 of them.
template <class T>
void test_quantiles(int64_t n, double offset, int64_t count) {
  const auto values = random_normal<T>(n, 3.0f);
  std::vector<float> out(count);
  estimate_quantiles(values.data(), dtype_of<T>(), n, offset, count, out.data(), workspace().data(),
                     nullptr);
  std::vector<double> sorted;
  for (T value : values) sorted.push_back(number(value));
  std::sort(sorted.begin(), sorted.end());
  for (int64_t q = 0; q < count; ++q) {
    const double share = static_cast<double>(q) / static_cast<double>(count - 1);
    const double rank = (offset + (1.0 - 2.0 * offset) * share) * static_cast<double>(n - 1);
    const double low = sorted[static_cast<size_t>(std::fmax(std::floor(rank - 1e-6), 0.0))];
    const double high =
        sorted[static_cast<size_t>(std::fmin(std::ceil(rank + 1e-6), static_cast<double>(n - 1)))];
    CHECK(number(out[q]) >= low - std::fabs(low) / 127.0);
    CHECK(number(out[q]) <= high + std::fabs(high) / 127.0);
    CHECK(q == 0 || out[q] >= out[q - 1]);
  }
}

void test_all() {
  for (int64_t n : {1, 2, 255, 1000, 140001}) {
    for_each_type([&](auto type) {
      test_quantiles<decltype(type)>(n, 1.0 / 512.0, 256);
      test_quantiles<decltype(type)>(n, 0.0, 2);
    });
  }
  const float bad[] = {1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  float out[2];
  estimate_quantiles(bad, DType::kFloat32, 3, 0.0, 2, out, workspace().data(), nullptr);
  CHECK(std::isnan(out[0]) && std::isnan(out[1]));
}

}  // namespace
}  // namespace bnbx::test

int main() {
  bnbx::test::for_each_isa(bnbx::test::test_all);
  return bnbx::test::result();
}
