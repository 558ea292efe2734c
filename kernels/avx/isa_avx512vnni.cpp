// AVX-512 with VNNI.
#include "avx/avx512_table.h"
#include "avx/vec_avx512.h"

namespace bnbx {
namespace avx512vnni {

struct Vnni;
extern const KernelTable kTable = cpu::avx512_table_of<avx512::Vec<Vnni>>();

}  // namespace avx512vnni
}  // namespace bnbx
