// estimate_quantiles: the values are counted in one pass over the tensor, each block of threads in
// shared memory, which in the end it adds to the counts in the workspace.
//
// Shared memory has no room for all 2^16 patterns, but for the zeros and those of a window of 31
// exponents, outside of which the values of a tensor hardly lie: a sample says where it is. What is
// outside is counted in the workspace at once. The window decides how fast this is and changes no
// result: counts are integers, which come out the same in whatever order they are added.
#include <cmath>

#include "common/quantiles.h"
#include "cuda/elements.h"

namespace bnbx {
namespace gpu {
namespace {

using Count = unsigned long long;  // the type of 64 bits for which there are atomic operations

constexpr int kThreads = 512;
constexpr int kSample = 8 * kThreads;
constexpr int kExponents = 256;
constexpr int kFractions = kPatterns / 2 / kExponents;
constexpr int kRows = 32;  // a row has the fractions of an exponent: the first one those of zero
constexpr int kWindow = 2 * kRows * kFractions;  // the negative patterns follow the positive ones
constexpr int kLoads = 4;                        // under way at a time
constexpr int kBlocksEach = 2;                   // blocks that count, of a multiprocessor
constexpr int64_t kSpan = int64_t{1} << 31;      // values that are counted in 32 bits
constexpr int kRange = 2048;                     // patterns whose counts a block clears or reads
constexpr int kRanges = kPatterns / kRange;

// The workspace.
struct Counts {
  Count at[kPatterns];  // in ascending order of the patterns
  int64_t exponent;     // the first one of the window
};

__device__ inline int exponent_of(uint32_t pattern) {
  return static_cast<int>(pattern / kFractions % kExponents);
}

// Where a pattern is in a window; -1 if it is outside.
__device__ inline int index_of(uint32_t pattern, int first) {
  const int exponent = exponent_of(pattern);
  const int row = exponent == 0 ? 0 : exponent - first + 1;
  if (row >= kRows || (row < 1 && exponent != 0)) return -1;
  const int sign = static_cast<int>(pattern >> 15);
  return (sign * kRows + row) * kFractions + static_cast<int>(pattern % kFractions);
}
// The pattern there; of those behind the last exponent, where nothing is counted, any.
__device__ inline uint32_t pattern_of_index(int index, int first) {
  const int row = index / kFractions % kRows;
  const int exponent = row == 0 ? 0 : (first + row - 1) % kExponents;
  const int sign = index / (kFractions * kRows);
  return static_cast<uint32_t>((sign * kExponents + exponent) * kFractions + index % kFractions);
}

// The first exponent of the window with the most values of a sample; the smallest of several.
template <class T>
__device__ inline int choose_window(const T* A, int64_t n) {
  __shared__ uint32_t of_exponent[kExponents];
  __shared__ uint32_t best;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kExponents) of_exponent[thread] = 0;
  if (thread == 0) best = 0;
  __syncthreads();
  const int64_t stride = n > kSample ? n / kSample : 1;
  for (int64_t s = thread; s < kSample && s * stride < n; s += kThreads) {
    atomicAdd(&of_exponent[exponent_of(pattern_of(to_float(A[s * stride])))], 1u);
  }
  __syncthreads();
  if (thread < kExponents) {
    uint32_t values = 0;
    const int end = min(thread + kRows - 1, kExponents);
    for (int e = thread; e < end; ++e) values += of_exponent[e];
    const auto rank = static_cast<uint32_t>(kExponents - thread);
    const uint32_t most = group_max(thread == 0 ? 0 : values * kExponents + rank);
    if (thread % kGroup == 0) atomicMax(&best, most);
  }
  __syncthreads();
  return kExponents - static_cast<int>(best % kExponents);
}

template <class T>
__global__ void __launch_bounds__(kThreads) begin(const T* A, int64_t n, Counts* counts) {
  const int first = static_cast<int>(blockIdx.x) * kRange;
  for (int p = static_cast<int>(threadIdx.x); p < kRange; p += kThreads) counts->at[first + p] = 0;
  if (blockIdx.x > 0) return;
  const int exponent = choose_window(A, n);
  if (threadIdx.x == 0) counts->exponent = exponent;
}

// Counts the values that a thread sees. Equal neighbours are counted together: many threads that
// add to one counter wait for each other.
class Counter {
 public:
  __device__ Counter(uint32_t* window, Counts* counts)
      : window_(window), counts_(counts), first_(static_cast<int>(counts->exponent)) {}

  template <class T>
  __device__ void add(T value) {
    const uint32_t pattern = pattern_of(to_float(value));
    if (pattern != pattern_) flush();
    pattern_ = pattern;
    ++run_;
  }

  __device__ void flush() {
    if (run_ == 0) return;
    const int index = index_of(pattern_, first_);
    if (index >= 0) {
      atomicAdd(&window_[index], run_);
    } else {
      atomicAdd(&counts_->at[place_of(pattern_)], Count{run_});
    }
    run_ = 0;
  }

  // Moves what the block has counted to the workspace.
  __device__ void move_window() {
    flush();
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kWindow; i += kThreads) {
      if (window_[i] == 0) continue;
      atomicAdd(&counts_->at[place_of(pattern_of_index(i, first_))], Count{window_[i]});
      window_[i] = 0;
    }
    __syncthreads();
  }

 private:
  uint32_t* window_;
  Counts* counts_;
  int first_;
  uint32_t pattern_ = 0;  // of the last value
  uint32_t run_ = 0;      // such values that are not counted yet
};

template <class T>
__global__ void __launch_bounds__(kThreads) count(const T* A, int64_t n, Counts* counts) {
  constexpr int kCount = kPerVector<T>;
  __shared__ uint32_t window[kWindow];
  for (int i = static_cast<int>(threadIdx.x); i < kWindow; i += kThreads) window[i] = 0;
  __syncthreads();
  Counter counter(window, counts);
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t start = 0; start < n; start += kSpan) {
    const T* span = A + start;
    const int64_t length = n - start < kSpan ? n - start : kSpan;
    const int64_t vectors = is_aligned(A, 16) ? length / kCount : 0;
    int64_t i = thread;
    for (; i + (kLoads - 1) * threads < vectors; i += kLoads * threads) {
      Vector<T, kCount> loaded[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        loaded[k] = load_vector<T, kCount>(span + (i + k * threads) * kCount);
      }
#pragma unroll
      for (int k = 0; k < kLoads * kCount; ++k) {
        counter.add(loaded[k / kCount].values[k % kCount]);
      }
    }
    for (; i < vectors; i += threads) {
      for (const T& value : load_vector<T, kCount>(span + i * kCount).values) counter.add(value);
    }
    for (int64_t j = vectors * kCount + thread; j < length; j += threads) counter.add(span[j]);
    counter.move_window();
  }
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

// A block writes the quantiles that lie in its range: it needs the counts of the range and the sum
// of all below it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    read_off(const Counts* counts, int64_t n, double offset, int64_t num_quantiles, float* out) {
  __shared__ Count total[kRange];  // each with all before it in the range
  __shared__ Count below;
  const int thread = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * kRange;
  for (int p = thread; p < kRange; p += kThreads) total[p] = counts->at[first + p];
  if (thread == 0) below = 0;
  __syncthreads();
  Count own = 0;
  for (int p = thread; p < first; p += kThreads) own += counts->at[p];
  own = group_sum(own);
  if (thread % kGroup == 0) atomicAdd(&below, own);
  accumulate(total);
  __syncthreads();
  const auto values_to = [&](int p) {  // that lie below the range or in its first p patterns
    return static_cast<double>(below + (p > 0 ? total[p - 1] : 0));
  };
  const bool nan = counts->at[place_of(kNanPattern)] > 0;
  for (int64_t q = thread; q < num_quantiles; q += kThreads) {
    const double rank = rank_of(q, num_quantiles, offset, n);
    if (values_to(0) > rank || values_to(kRange) <= rank) continue;
    int p = 0;  // patterns of the range that lie below the rank
    for (int half = kRange / 2; half > 0; half /= 2) {
      if (values_to(p + half) <= rank) p += half;
    }
    const double t = (rank - values_to(p)) / (values_to(p + 1) - values_to(p));
    const uint32_t pattern = pattern_at(first + p);
    out[q] = nan ? NAN : value_within(pattern, t, std::is_same_v<T, bfloat16>);
  }
}

// Enough for each thread to have its loads, but no more than stay on the device.
template <class T>
Blocks counting_grid(int64_t n) {
  const int64_t most = int64_t{kBlocksEach} * multiprocessors();
  const int64_t blocks = ceil_div(n, int64_t{kThreads} * kLoads * kPerVector<T>);
  return Blocks(static_cast<unsigned>(blocks < most ? blocks : most));
}

}  // namespace
}  // namespace gpu

int64_t estimate_quantiles_workspace() { return sizeof(gpu::Counts) / sizeof(int64_t); }

void estimate_quantiles(const void* A, DType dtype, int64_t n, double offset, int64_t num_quantiles,
                        float* out, int64_t* workspace, Stream stream) {
  auto* counts = reinterpret_cast<gpu::Counts*>(workspace);
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const auto* values = static_cast<const T*>(A);
    const gpu::Blocks blocks = gpu::counting_grid<T>(n);
    gpu::launch<gpu::begin<T>>(gpu::kRanges, gpu::kThreads, 0, stream, values, n, counts);
    gpu::launch<gpu::count<T>>(blocks, gpu::kThreads, 0, stream, values, n, counts);
    gpu::launch<gpu::read_off<T>>(gpu::kRanges, gpu::kThreads, 0, stream, counts, n, offset,
                                  num_quantiles, out);
  });
}

}  // namespace bnbx
