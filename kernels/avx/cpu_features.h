// What the processor and the operating system support: asked with cpuid and xgetbv on x86, of the
// operating system on Arm.
#pragma once

namespace bnbx {

bool cpu_has_avx2();        // with FMA and F16C
bool cpu_has_avx512();      // F, BW, DQ and VL
bool cpu_has_avx512vnni();  // and VNNI
bool cpu_has_amx();  // and BF16, tiles of bf16 and int8, for which it asks the system's permission

bool cpu_has_neon_dotprod();  // the dot products of int8; NEON itself is on every 64-bit Arm
bool cpu_has_neon_mmla();     // and the matrix products of int8 and bf16

int fast_processors();  // all of them where the system knows no kinds

}  // namespace bnbx
