// The kernels of this instruction set; CMakeLists.txt gives this file, and no other, its flags.
#include "avx/avx512_table.h"
#include "avx/vec_avx512.h"

namespace bnbx {
namespace avx512 {

struct Base;
extern const KernelTable kTable = cpu::avx512_table_of<Vec<Base>>();

}  // namespace avx512
}  // namespace bnbx
