// The kernels of this instruction set; CMakeLists.txt gives this file, and no other, its flags.
#include "avx/kernels_of.h"
#include "avx/vec_avx512.h"

namespace bnbx {
namespace avx512 {

struct Base;
extern const KernelTable kTable = cpu::table_of<Vec<Base>>();

}  // namespace avx512
}  // namespace bnbx
