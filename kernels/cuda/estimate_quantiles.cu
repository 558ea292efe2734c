// estimate_quantiles: values are counted by the top 16 bits of their float (sign, exponent, seven
// bits of fraction), which order as the values do; a quantile is read off the counts.
//
// The counts of all 2^16 patterns are more than a block of threads has memory for. So each block
// goes through all of the tensor and counts the patterns of one range, and how many values lie
// below the range. It knows then which quantiles are in its range, and writes those: no block needs
// anything of another one, and the memory is read from the cache by all of them but one.
#include <cmath>

#include "cuda/elements.h"

namespace bnbx {
namespace gpu {
namespace {

using Count = unsigned long long;  // the type of 64 bits for which there are atomic operations

constexpr int kThreads = 512;
constexpr int kRange = 2048;  // patterns
constexpr int kBlocks = (1 << 16) / kRange;
constexpr int64_t kSpan = int64_t{1} << 31;  // values that are counted in 32 bits

struct Counts {
  uint32_t of_span[kRange];
  Count total[kRange];  // in the end with all before it
  Count below;          // values below the range
  uint32_t nan;
};

// The place of a pattern in ascending order: the negative ones by falling magnitude, then the
// positive ones; and back.
__device__ inline int place_of(uint32_t pattern) {
  return static_cast<int>(pattern < 0x8000u ? pattern + 0x8000u : 0xffffu - pattern);
}
__device__ inline uint32_t pattern_at(int place) {
  const auto pattern = static_cast<uint32_t>(place);
  return pattern < 0x8000u ? 0xffffu - pattern : pattern - 0x8000u;
}

// Counts the values that a thread sees. Equal neighbours are counted together: many threads that
// add to one counter wait for each other.
class Counter {
 public:
  __device__ Counter(int first, Counts* counts) : first_(first), counts_(counts) {}

  template <class T>
  __device__ void add(T value) {
    const float x = to_float(value);
    nan_ = nan_ || x != x;
    const int place = place_of(float_bits(x) >> 16) - first_;
    if (place < 0) ++below_;
    if (place < 0 || place >= kRange) return;
    if (place != place_) flush();
    place_ = place;
    ++run_;
  }

  __device__ void flush() {
    if (run_ > 0) atomicAdd(&counts_->of_span[place_], run_);
    run_ = 0;
  }

  __device__ void finish() const {
    const Count below = group_sum(below_);
    const bool nan = any(nan_);
    if (threadIdx.x % kGroup != 0) return;
    atomicAdd(&counts_->below, below);
    if (nan) atomicMax(&counts_->nan, 1u);
  }

 private:
  int first_;
  Counts* counts_;
  int place_ = 0;     // of the last value in the range
  uint32_t run_ = 0;  // values there that are not counted yet
  Count below_ = 0;
  bool nan_ = false;
};

template <class T>
__device__ inline void count(const T* A, int64_t n, int first, Counts* counts) {
  constexpr int kCount = kPerVector<T>;
  const int thread = static_cast<int>(threadIdx.x);
  Counter counter(first, counts);
  for (int64_t start = 0; start < n; start += kSpan) {
    const T* span = A + start;
    const int64_t length = n - start < kSpan ? n - start : kSpan;
    const int64_t in_vectors = is_aligned(A, 16) ? length / kCount * kCount : 0;
    for (int64_t i = thread * kCount; i < in_vectors; i += kThreads * kCount) {
      for (const T& value : load_vector<T, kCount>(span + i).values) counter.add(value);
    }
    for (int64_t i = in_vectors + thread; i < length; i += kThreads) counter.add(span[i]);
    counter.flush();
    __syncthreads();
    for (int p = thread; p < kRange; p += kThreads) {
      counts->total[p] += counts->of_span[p];
      counts->of_span[p] = 0;
    }
    __syncthreads();
  }
  counter.finish();
}

// Adds to each entry all before it. One group does it: it takes a few microseconds.
__device__ inline void accumulate(Count* total) {
  constexpr int kEach = kRange / kGroup;
  const int lane = static_cast<int>(threadIdx.x);
  if (lane >= kGroup) return;
  Count before = 0;  // the entries of this lane, then those of lanes before it
  for (int i = 0; i < kEach; ++i) before += total[lane * kEach + i];
  for (int step = 1; step < kGroup; step *= 2) {
    const Count other = shuffle(before, max(lane - step, 0));
    if (lane >= step) before += other;
  }
  before = shuffle(before, max(lane - 1, 0));
  if (lane == 0) before = 0;
  for (int i = 0; i < kEach; ++i) {
    before += total[lane * kEach + i];
    total[lane * kEach + i] = before;
  }
}

// The value a share `t` of the way through the values with a pattern. A bfloat16 has no other; zero
// and infinity stay what they are.
template <class T>
__device__ inline float value_within(uint32_t pattern, double t) {
  const float edge = bits_float(pattern << 16);
  const uint32_t exponent = pattern & 0x7f80u;
  if (std::is_same_v<T, bfloat16> || exponent == 0 || exponent == 0x7f80u) return edge;
  const float other = bits_float(pattern << 16 | 0xffffu);
  const double low = static_cast<double>(edge < other ? edge : other);
  const double high = static_cast<double>(edge < other ? other : edge);
  return static_cast<float>(low + t * (high - low));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    estimate(const T* A, int64_t n, double offset, int64_t num_quantiles, float* out) {
  __shared__ Counts counts;
  for (int p = static_cast<int>(threadIdx.x); p < kRange; p += kThreads) {
    counts.of_span[p] = 0;
    counts.total[p] = 0;
  }
  if (threadIdx.x == 0) counts.below = counts.nan = 0;
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x) * kRange;
  count(A, n, first, &counts);
  accumulate(counts.total);
  __syncthreads();
  const auto values_to = [&](int p) {  // that lie below the range or in its first p patterns
    return static_cast<double>(counts.below + (p > 0 ? counts.total[p - 1] : 0));
  };
  for (int64_t q = threadIdx.x; q < num_quantiles; q += kThreads) {
    const double share = offset + (1.0 - 2.0 * offset) * static_cast<double>(q) /
                                      static_cast<double>(num_quantiles - 1);
    const double rank = share * static_cast<double>(n - 1);
    if (values_to(0) > rank || values_to(kRange) <= rank) continue;
    int p = 0;  // patterns of the range that lie below the rank
    for (int half = kRange / 2; half > 0; half /= 2) {
      if (values_to(p + half) <= rank) p += half;
    }
    const double t = (rank - values_to(p)) / (values_to(p + 1) - values_to(p));
    out[q] = counts.nan ? NAN : value_within<T>(pattern_at(first + p), t);
  }
}

}  // namespace
}  // namespace gpu

void estimate_quantiles(const void* A, DType dtype, int64_t n, double offset, int64_t num_quantiles,
                        float* out, Stream stream) {
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    gpu::launch(gpu::estimate<T>, gpu::kBlocks, gpu::kThreads, 0, stream, static_cast<const T*>(A),
                n, offset, num_quantiles, out);
  });
}

}  // namespace bnbx
