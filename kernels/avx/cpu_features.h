// What the processor and the operating system support, asked with cpuid and xgetbv.
#pragma once

namespace bnbx {

bool cpu_has_avx2();    // with FMA and F16C
bool cpu_has_avx512();  // F, BW, DQ and VL

}  // namespace bnbx
