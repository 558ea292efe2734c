#include "avx/cpu_features.h"

#include <cstddef>
#include <cstdint>
#include <thread>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#ifdef BNBX_X86
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bnbx {
namespace {

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r = {0, 0, 0, 0};
#ifdef _MSC_VER
  int values[4];
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(values[0]), static_cast<uint32_t>(values[1]),
       static_cast<uint32_t>(values[2]), static_cast<uint32_t>(values[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

bool bit(uint32_t value, int position) { return (value >> position & 1u) != 0; }

// Which register states the operating system saves: bits 1-2 are ymm, 5-7 are zmm and masks.
uint64_t saved_states() {
  if (!bit(cpuid(1).ecx, 27)) return 0;  // OSXSAVE
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
#endif
}

// Linux saves the tile registers of a process that has asked for them, once.
bool tiles_are_permitted() {
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return (saved_states() & 0x60000) == 0x60000;
#endif
}

}  // namespace

bool cpu_has_avx2() {
  const Registers one = cpuid(1);
  const Registers seven = cpuid(7);
  const bool fma = bit(one.ecx, 12), f16c = bit(one.ecx, 29), avx2 = bit(seven.ebx, 5);
  return fma && f16c && avx2 && (saved_states() & 0x6) == 0x6;
}

bool cpu_has_avx512() {
  const uint32_t ebx = cpuid(7).ebx;
  const bool f = bit(ebx, 16), dq = bit(ebx, 17), bw = bit(ebx, 30), vl = bit(ebx, 31);
  return cpu_has_avx2() && f && dq && bw && vl && (saved_states() & 0xe6) == 0xe6;
}

bool cpu_has_avx512vnni() { return cpu_has_avx512() && bit(cpuid(7).ecx, 11); }

bool cpu_has_amx() {
  const uint32_t edx = cpuid(7).edx;
  const bool bf16 = bit(edx, 22), tile = bit(edx, 24), int8 = bit(edx, 25);
  const bool bf16_vectors = bit(cpuid(7, 1).eax, 5);
  return cpu_has_avx512vnni() && bf16_vectors && bf16 && tile && int8 && tiles_are_permitted();
}

}  // namespace bnbx
#endif  // BNBX_X86

#ifdef BNBX_NEON
#ifdef __linux__
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace bnbx {
namespace {

// A feature, as the operating system that this is compiled for calls it.
#ifdef __linux__
struct Feature {
  unsigned long word, bit;  // of the auxiliary vector
};
constexpr Feature kDotProduct = {AT_HWCAP, 20}, kInt8Matrix = {AT_HWCAP2, 13},
                  kBf16 = {AT_HWCAP2, 14};
bool has(Feature feature) { return (getauxval(feature.word) >> feature.bit & 1u) != 0; }
#elif defined(__APPLE__)
constexpr const char* kDotProduct = "hw.optional.arm.FEAT_DotProd";
constexpr const char* kInt8Matrix = "hw.optional.arm.FEAT_I8MM";
constexpr const char* kBf16 = "hw.optional.arm.FEAT_BF16";
bool has(const char* feature) {
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname(feature, &found, &size, nullptr, 0) == 0 && found != 0;
}
#elif defined(_WIN32)
// PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE and the like, for which older headers have no names.
constexpr DWORD kDotProduct = 43, kInt8Matrix = 66, kBf16 = 68;
bool has(DWORD feature) { return IsProcessorFeaturePresent(feature) != 0; }
#else
constexpr int kDotProduct = 0, kInt8Matrix = 1, kBf16 = 2;
bool has(int) { return false; }  // no way to ask is known here
#endif

}  // namespace

bool cpu_has_neon_dotprod() { return has(kDotProduct); }

bool cpu_has_neon_mmla() { return has(kDotProduct) && has(kInt8Matrix) && has(kBf16); }

}  // namespace bnbx
#endif  // BNBX_NEON

namespace bnbx {

int fast_processors() {
#ifdef __APPLE__
  int count = 0;
  size_t size = sizeof(count);
  if (sysctlbyname("hw.perflevel0.logicalcpu", &count, &size, nullptr, 0) == 0 && count > 0) {
    return count;
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace bnbx
