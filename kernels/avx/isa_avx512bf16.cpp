// AVX-512 with VBMI, VNNI and BF16.
#include "avx/avx512_table.h"
#include "avx/vec_avx512.h"

namespace bnbx {
namespace avx512bf16 {

struct Bf16;
extern const KernelTable kTable = cpu::avx512_table_of<avx512::Vec<Bf16>>();

}  // namespace avx512bf16
}  // namespace bnbx
