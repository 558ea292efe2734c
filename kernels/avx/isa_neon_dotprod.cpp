// NEON with the dot product of Armv8.2: sixteen products of int8 in one instruction.
#include "avx/kernels_of.h"
#include "avx/vec_neon.h"

namespace bnbx {
namespace neon_dotprod {

struct DotProduct;

struct Vec : neon::Vec<DotProduct> {
  static constexpr int kInt8Width = 32;
  struct Int8 {
    int8x16_t low, high;
  };
  static Int8 load_int8(const int8_t* p) { return {vld1q_s8(p), vld1q_s8(p + 16)}; }
  static I32 dot(I32 sum, Int8 a, Int8 b) {
    return {vdotq_s32(sum.low, a.low, b.low), vdotq_s32(sum.high, a.high, b.high)};
  }
};

extern const KernelTable kTable = cpu::table_of<Vec>();

}  // namespace neon_dotprod
}  // namespace bnbx
