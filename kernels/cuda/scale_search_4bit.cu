// scale_search_4bit: for each block the scale, of either sign, with the smallest squared error, as
// kernels/avx/scale_search_4bit.h explains it.
//
// A lane has a block, so that the sums over its elements are made in order and have the same bits
// on every backend. The group reads 32 elements of each of its 32 blocks at a time, and hands them
// to the lanes through shared memory, once for every few trial scales.
#include <stdexcept>
#include <string>

#include "cuda/encode_4bit.h"
#include "cuda/quantize_tile.h"

namespace bnbx {
namespace gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kGroups = kThreads / kGroup;
constexpr int kTrialsAtOnce = 8;
// They travel as an argument of the kernel.
constexpr int kMaxTrials = kArgumentBytes < 4096 ? 384 : 512;
// Blocks whose largest magnitude is below are left as they are: a trial could lose all its bits.
constexpr float kSmallestSearched = 1e-30f;

struct Trials {
  int count, refinements;
  float factors[kMaxTrials];
};

// Elements i of a group's blocks, block by block; the padding keeps lanes in different banks.
using Chunk = float[kGroup][kGroup + 1];

// What is found for codes q: sums of x q and of q q over the elements x of a block.
struct Sums {
  float xq, qq;
};

template <class T, class Levels, bool kWeighted>
class Search {
 public:
  __device__ Search(const T* A, int64_t n, int blocksize, const float* importance, int64_t columns,
                    const Levels& levels, Chunk* values, Chunk* weights)
      : A_(A),
        n_(n),
        blocksize_(blocksize),
        first_((static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / kGroup) * kGroup *
               blocksize),
        lane_(static_cast<int>(threadIdx.x) % kGroup),
        importance_(importance),
        columns_(columns),
        levels_(levels),
        values_(values[threadIdx.x / kGroup]),
        weights_(weights[kWeighted ? threadIdx.x / kGroup : 0]) {}

  __device__ void operator()(const Trials& trials, float* absmax) {
    const float largest = find_absmax();
    inverse_ = largest >= kSmallestSearched ? 1.0f / largest : 0.0f;
    const float scale = largest * best(trials);
    const int64_t block = first_ / blocksize_ + lane_;
    // Unless it has become infinite.
    if (block * blocksize_ < n_) absmax[block] = scale - scale == 0.0f ? scale : largest;
  }

 private:
  // Of the lane's block.
  __device__ float find_absmax() const {
    uint32_t mine = 0;
    for (int block = 0; block < kGroup; ++block) {
      uint32_t largest = 0;
      for (int i = lane_; i < blocksize_; i += kGroup) {
        const int64_t at = first_ + static_cast<int64_t>(block) * blocksize_ + i;
        if (at < n_) largest = max(largest, magnitude_bits(A_[at]));
      }
      largest = group_max(largest);
      if (block == lane_) mine = largest;
    }
    return finite_magnitude(mine);
  }

  // Reads the elements from number `start` of each block on, in units of its largest magnitude; of
  // a block that is not searched they are 0.
  __device__ void stage(int start) {
    for (int block = 0; block < kGroup; ++block) {
      const float inverse = shuffle(inverse_, block);
      const int64_t at = first_ + static_cast<int64_t>(block) * blocksize_ + start + lane_;
      const bool in_use = inverse != 0.0f && at < n_;
      values_[block][lane_] = in_use ? to_float(A_[at]) * inverse : 0.0f;
      if (kWeighted) weights_[block][lane_] = in_use ? importance_[at % columns_] : 0.0f;
    }
  }

  // Calls body(x, weight) for the elements of the lane's block, in order.
  template <class Body>
  __device__ void sweep(Body&& body) {
    for (int start = 0; start < blocksize_; start += kGroup) {
      sync_group();
      stage(start);
      sync_group();
      for (int i = 0; i < kGroup; ++i) {
        body(values_[lane_][i], kWeighted ? weights_[lane_][i] : 1.0f);
      }
    }
  }

  __device__ float level(float x) const { return bits_float(levels_(Levels::clamped(x))); }

  __device__ void add(float x, float weight, float inverse, Sums* sums) const {
    const float q = level(x * inverse);
    const float weighted = kWeighted ? weight * q : q;
    sums->xq = sums->xq + x * weighted;
    sums->qq = sums->qq + q * weighted;
  }

  // Takes the scale that is best for some codes if they are worth more than those before.
  __device__ void judge(const Sums& sums) {
    const float fitted = sums.xq / sums.qq;  // NaN, which is not more, if all codes are zero
    const float found = fitted * sums.xq;
    if (found > worth_) {
      worth_ = found;
      ratio_ = fitted;
    }
  }

  __device__ float squared_error(float x, float weight, float inverse, float ratio) const {
    const float off = x - level(x * inverse) * ratio;
    return off * (kWeighted ? weight * off : off);
  }

  // The best scale over the largest magnitude; 1 if nothing is better.
  __device__ float best(const Trials& trials) {
    for (int t = 0; t < trials.count; t += kTrialsAtOnce) {
      Sums sums[kTrialsAtOnce] = {};
      float inverses[kTrialsAtOnce];
      for (int i = 0; i < kTrialsAtOnce; ++i) {
        inverses[i] = 1.0f / trials.factors[min(t + i, trials.count - 1)];
      }
      sweep([&](float x, float weight) {
        for (int i = 0; i < kTrialsAtOnce; ++i) add(x, weight, inverses[i], &sums[i]);
      });
      for (const Sums& of_trial : sums) judge(of_trial);
    }
    for (int r = 0; r < trials.refinements; ++r) {
      Sums sums = {};
      const float inverse = 1.0f / ratio_;
      sweep([&](float x, float weight) { add(x, weight, inverse, &sums); });
      judge(sums);
    }
    float plain = 0.0f, scaled = 0.0f;
    const float inverse = 1.0f / ratio_;
    sweep([&](float x, float weight) {
      plain = plain + squared_error(x, weight, 1.0f, 1.0f);
      scaled = scaled + squared_error(x, weight, inverse, ratio_);
    });
    return plain > scaled ? ratio_ : 1.0f;
  }

  const T* A_;
  int64_t n_;
  int blocksize_;
  int64_t first_;  // element of the group's blocks
  int lane_;
  const float* importance_;
  int64_t columns_;
  const Levels& levels_;
  Chunk &values_, &weights_;
  float inverse_ = 0.0f;  // of the block's largest magnitude; 0 if it is not searched
  float worth_ = 0.0f, ratio_ = 1.0f;
};

template <class T, class Levels, bool kWeighted>
__global__ void __launch_bounds__(kThreads)
    search(const T* A, int64_t n, int blocksize, const float* importance, int64_t columns,
           Codebook4 book, Trials trials, float* absmax) {
  __shared__ Levels levels;
  __shared__ Chunk values[kGroups];
  __shared__ Chunk weights[kWeighted ? kGroups : 1];
  levels.fill_levels(book);
  __syncthreads();
  Search<T, Levels, kWeighted> found(A, n, blocksize, importance, columns, levels, values, weights);
  found(trials, absmax);
}

Trials checked_trials(const float* factors, int64_t trials, int64_t refinements) {
  if (trials > kMaxTrials || refinements > INT32_MAX) {
    throw std::invalid_argument("scale_search_4bit: expected at most " +
                                std::to_string(kMaxTrials) + " factors on this device, got " +
                                std::to_string(trials));
  }
  Trials out{static_cast<int>(trials), static_cast<int>(refinements), {}};
  for (int t = 0; t < out.count; ++t) out.factors[t] = factors[t];
  return out;
}

}  // namespace
}  // namespace gpu

void scale_search_4bit(const void* A, DType dtype, int64_t n, const float* importance,
                       int64_t columns, const float* factors, int64_t trials, int64_t refinements,
                       int64_t blocksize, QuantType quant_type, float* absmax, Stream stream) {
  const gpu::Trials all = gpu::checked_trials(factors, trials, refinements);
  if (n == 0) return;
  const int64_t blocks = gpu::ceil_div(gpu::ceil_div(n, blocksize), gpu::kThreads);
  gpu::with_type(dtype, [&](auto type) {
    using T = decltype(type);
    gpu::with_encoder(quant_type, [&](auto* encoder) {
      using Levels = std::remove_pointer_t<decltype(encoder)>;
      const auto search = [&](auto weighted) {
        gpu::launch<gpu::search<T, Levels, weighted.value>>(
            static_cast<unsigned>(blocks), gpu::kThreads, 0, stream, static_cast<const T*>(A), n,
            blocksize, importance, columns, gpu::codebook(quant_type), all, absmax);
      };
      if (importance == nullptr) {
        search(std::false_type{});
      } else {
        search(std::true_type{});
      }
    });
  });
}

}  // namespace bnbx
