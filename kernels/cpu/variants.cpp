#include "variants.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lgld {

#define LGLD_DECLARE(name)                              \
  extern const ElementwiseKernels elementwise_##name;   \
  extern const FfmKernels ffm_##name;                   \
  extern const Involution2dKernels involution2d_##name; \
  extern const LgldnetKernels lgldnet_##name;           \
  extern const ProbeKernels probe_##name;

LGLD_DECLARE(scalar)
#if defined(__x86_64__)
LGLD_DECLARE(sse2)
LGLD_DECLARE(avx2)
LGLD_DECLARE(avx512)
#elif defined(__aarch64__)
LGLD_DECLARE(neon)
#endif

namespace {

bool always() { return true; }

#if defined(__x86_64__)
// The compiler's checks cover the operating system's support for the wider registers, too.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // no compiler before gcc 11 and clang 16 knows the name "f16c"
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#define LGLD_VARIANT_ROW(name, needs, supported) \
  {#name, needs, supported, &elementwise_##name, &ffm_##name, &involution2d_##name, &lgldnet_##name, &probe_##name}

const CpuVariant kVariants[] = {
#if defined(__x86_64__)
    LGLD_VARIANT_ROW(avx512, "AVX-512 F, BW, DQ and VL", has_avx512),
    LGLD_VARIANT_ROW(avx2, "AVX2, FMA and F16C", has_avx2),
    LGLD_VARIANT_ROW(sse2, "SSE2", always),
#elif defined(__aarch64__)
    LGLD_VARIANT_ROW(neon, "Advanced SIMD (NEON)", always),
#endif
    LGLD_VARIANT_ROW(scalar, "nothing", always),
};

}  // namespace

const CpuVariant* cpu_variants(int* count) {
  *count = static_cast<int>(sizeof(kVariants) / sizeof(kVariants[0]));
  return kVariants;
}

const CpuVariant* find_cpu_variant(const char* name) {
  for (const CpuVariant& v : kVariants)
    if (std::strcmp(v.name, name) == 0) return &v;
  return nullptr;
}

const CpuVariant* best_cpu_variant() {
  for (const CpuVariant& v : kVariants)
    if (v.supported()) return &v;
  return nullptr;
}

}  // namespace lgld
