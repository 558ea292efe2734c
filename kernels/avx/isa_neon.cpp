// What every 64-bit Arm processor has. CMakeLists.txt gives this file no flags of its own.
#include "avx/kernels_of.h"
#include "avx/vec_neon.h"

namespace bnbx {
namespace neon {

struct Base;
extern const KernelTable kTable = cpu::table_of<Vec<Base>>();

}  // namespace neon
}  // namespace bnbx
