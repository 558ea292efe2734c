// The kernels of this instruction set; CMakeLists.txt gives this file, and no other, its flags.
#include "avx/kernels_of.h"
#include "avx/vec_scalar.h"

namespace bnbx {
namespace scalar {

extern const KernelTable kTable = cpu::table_of<Vec>();

}  // namespace scalar
}  // namespace bnbx
