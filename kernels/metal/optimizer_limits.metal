// What max_unorm leaves to an update, from the sums of squares of its tiles; one group.
#include "metal/device.h"

namespace bnbx {

// A sum that keeps what rounding loses (Kahan 1965), in the place of double.
struct LongSum {
  float sum, lost;

  BNBX_MEMBER void add(float x) {
    const float rest = x - lost, next = sum + rest;
    lost = (next - sum) - rest;
    sum = next;
  }
};

}  // namespace bnbx

// A parameter of zeros may move freely: no share of its norm would ever let it.
template <uint kStride>
BNBX_KERNEL void limit_update(const device float* sums, constant long& tiles,
                              constant float& max_unorm, constant float& unit, device float* unorm,
                              device float* factor, BNBX_PLACE) {
  BNBX_SHARED float of_simds[2 * kSimds];
  LongSum of_p = {0.0f, 0.0f}, of_directions = {0.0f, 0.0f};
  for (ulong i = tid; i < ulong(tiles); i += kStride) {
    of_p.add(sums[2 * i]);
    of_directions.add(sums[2 * i + 1]);
  }
  const float p = metal::simd_sum(of_p.sum), directions = metal::simd_sum(of_directions.sum);
  if (lane == 0) {
    of_simds[2 * simd] = p;
    of_simds[2 * simd + 1] = directions;
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (tid != 0) return;
  float all_p = 0.0f, all_directions = 0.0f;
  for (uint i = 0; i < kSimds; ++i) {
    all_p += of_simds[2 * i];
    all_directions += of_simds[2 * i + 1];
  }
  const float limit = max_unorm * bnbx::sqrt(all_p), norm = bnbx::sqrt(all_directions) * unit;
  unorm[0] = norm;
  factor[0] = limit > 0.0f && norm > limit ? limit / norm : 1.0f;
}

BNBX_INSTANTIATE("limit_update", limit_update<kThreads>)
