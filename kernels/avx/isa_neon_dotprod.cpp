// NEON with the dot product of Armv8.2.
#include "avx/kernels_of.h"
#include "avx/vec_neon_dotprod.h"

namespace bnbx {
namespace neon_dotprod {

struct DotProduct;
extern const KernelTable kTable = cpu::table_of<neon::DotVec<DotProduct>>();

}  // namespace neon_dotprod
}  // namespace bnbx
