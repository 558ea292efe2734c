// The kernels of this instruction set; CMakeLists.txt gives this file, and no other, its flags.
#include "avx/kernels_of.h"
#include "avx/vec_avx2.h"

namespace bnbx {
namespace avx2 {

extern const KernelTable kTable = cpu::table_of<Vec>();

}  // namespace avx2
}  // namespace bnbx
