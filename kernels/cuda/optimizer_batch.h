// The parameters of an optimizer update as a kernel's arguments carry them: by value, so that
// nothing on the host is read once the call has returned.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/device.h"

namespace bnbx::gpu {

// A group updates a tile at a time: of the 256 elements each lane has two runs of four, so that the
// lanes together read and write whole sectors, whatever the dtype.
static constexpr int kRun = 4;
static constexpr int kRuns = 2;
static constexpr int kPerLane = kRun * kRuns;
static constexpr int kRunStride = kRun * kGroup;  // from a lane's run to its next
static constexpr int kTile = kPerLane * kGroup;

enum class Rounding : uint8_t { kNearest, kCompensated, kStochastic };

// What the kernels need of a ParameterUpdate.
struct Parameter {
  const void* g;
  void* p;
  void* state1;
  void* state2;
  float* absmax1;
  float* absmax2;
  float* unorm;
  const double* live;
  double* workspace;
  int64_t numel;
  union {
    void* compensation;
    int64_t seed;
  };
  uint8_t g_dtype, p_dtype;
  Rounding rounding;
  bool vectors;  // every run lies where one instruction may read it
};

// Parameters that share their constants, and how their elements are dealt out: in units of the same
// number, the last unit of a parameter with fewer.
struct Batch {
  // Beside a batch, a kernel has less than this many bytes of arguments.
  static constexpr int kOthers = 192;
  static constexpr int kCapacity =
      (kArgumentBytes - kOthers) / static_cast<int>(sizeof(Parameter) + sizeof(uint32_t));

  Parameter parameters[kCapacity];
  uint32_t firsts[kCapacity + 1];  // number of the first unit of each, then of all units
  int count;

  __device__ uint32_t units() const { return firsts[count]; }

  // The parameter to which a unit belongs; those without elements have none.
  __device__ int find(uint32_t unit) const {
    int first = 0, last = count - 1;
    while (first < last) {
      const int middle = (first + last + 1) / 2;
      if (firsts[middle] <= unit) {
        first = middle;
      } else {
        last = middle - 1;
      }
    }
    return first;
  }
};
static_assert(sizeof(Batch) + Batch::kOthers <= kArgumentBytes + sizeof(Parameter), "too large");

// The tiles of a batch are fewer, unless one parameter alone has more than 2^39 elements.
static constexpr int64_t kMostTiles = int64_t{1} << 31;

inline bool is_run_aligned(DType dtype, const void* pointer) {
  return is_aligned(pointer, kRun * (dtype == DType::kFloat32 ? 4 : 2));
}

// The first `states` of the states as `States` has them.
template <class States>
Parameter parameter_of(const ParameterUpdate& u, int states) {
  Parameter out;
  out.g = u.g;
  out.p = u.p;
  out.state1 = u.state1;
  out.state2 = u.state2;
  out.absmax1 = u.absmax1;
  out.absmax2 = u.absmax2;
  out.unorm = u.unorm;
  out.live = u.live;
  out.workspace = u.workspace;
  out.numel = u.numel;
  out.rounding = u.stochastic                ? Rounding::kStochastic
                 : u.compensation != nullptr ? Rounding::kCompensated
                                             : Rounding::kNearest;
  if (u.stochastic) {
    out.seed = u.seed;
  } else {
    out.compensation = u.compensation;
  }
  out.g_dtype = static_cast<uint8_t>(u.g_dtype);
  out.p_dtype = static_cast<uint8_t>(u.p_dtype);
  out.vectors = is_run_aligned(u.g_dtype, u.g) && is_run_aligned(u.p_dtype, u.p) &&
                is_run_aligned(DType::kBFloat16, u.compensation);
  for (int k = 0; k < states; ++k) {
    out.vectors = out.vectors && is_aligned(States::memory(out, k), States::kRunBytes);
  }
  return out;
}

// Sets what the units of a batch are, to some elements of one parameter; returns their number.
inline int64_t deal(Batch& batch, int64_t elements) {
  int64_t units = 0;
  for (int i = 0; i < batch.count; ++i) {
    batch.firsts[i] = static_cast<uint32_t>(units);
    units += ceil_div(batch.parameters[i].numel, elements);
  }
  batch.firsts[batch.count] = static_cast<uint32_t>(units);
  return units;
}

// Calls work(batch, step) with batches of all parameters, those of one step together.
template <class States, class Work>
void for_each_batch(const ParameterUpdate* parameters, int64_t count, int states, Work&& work) {
  std::vector<const ParameterUpdate*> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = parameters + i;
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->step < b->step; });
  Batch batch;
  for (int64_t i = 0; i < count;) {
    const int64_t step = order[i]->step;
    int64_t tiles = 0;
    batch.count = 0;
    for (; i < count && order[i]->step == step && batch.count < Batch::kCapacity; ++i) {
      const int64_t more = ceil_div(order[i]->numel, kTile);
      if (batch.count > 0 && tiles + more >= kMostTiles) break;
      batch.parameters[batch.count++] = parameter_of<States>(*order[i], states);
      tiles += more;
    }
    work(batch, step);
  }
}

}  // namespace bnbx::gpu
