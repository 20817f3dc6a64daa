#include "csrc/cpu/variant.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>

#include "csrc/error.h"

namespace lgld {
namespace {

std::string runnable_names() {
  int count = 0;
  const CpuVariant* all = cpu_variants(&count);
  std::string names;
  for (int i = 0; i < count; ++i)
    if (all[i].supported()) names += (names.empty() ? "" : ", ") + std::string(all[i].name);
  return names;
}

const CpuVariant& choose() {
  const char* wanted = std::getenv("LGLD_CPU_VARIANT");
  if (wanted == nullptr || *wanted == '\0') return *best_cpu_variant();
  const CpuVariant* variant = find_cpu_variant(wanted);
  LGLD_CHECK(variant != nullptr, "LGLD_CPU_VARIANT is '", wanted, "', which this build does not have; it must be one of ",
             runnable_names());
  LGLD_CHECK(variant->supported(), "LGLD_CPU_VARIANT is '", wanted, "', which needs ", variant->needs,
             ", and this machine lacks that; it must be one of ", runnable_names());
  return *variant;
}

}  // namespace

const CpuVariant& active_cpu_variant() {
  static const CpuVariant& variant = choose();
  return variant;
}

}  // namespace lgld

// What lgld_ops/_native.py reads through ctypes: plain C, so that no Python version is baked into the library.
extern "C" {

// The active variant's name, or null with a message in `error` (of `size` bytes) where LGLD_CPU_VARIANT rules every one out.
__attribute__((visibility("default"))) const char* lgld_active_cpu_variant(char* error, int size) {
  try {
    return lgld::active_cpu_variant().name;
  } catch (const std::exception& e) {
    std::strncpy(error, e.what(), static_cast<size_t>(size - 1));
    error[size - 1] = '\0';
    return nullptr;
  }
}

// Variant number `index` of those built (its name, what it needs, whether this machine has that); 0 behind the last.
__attribute__((visibility("default"))) int lgld_cpu_variant(int index, const char** name, const char** needs, int* supported) {
  int count = 0;
  const lgld::CpuVariant* all = lgld::cpu_variants(&count);
  if (index < 0 || index >= count) return 0;
  *name = all[index].name;
  *needs = all[index].needs;
  *supported = all[index].supported() ? 1 : 0;
  return 1;
}

// Multiply-adds per second that one thread of the named variant reaches in registers over about `seconds`; 0 where it can't
// run.
__attribute__((visibility("default"))) double lgld_peak_multiply_adds(const char* name, int is_double, double seconds) {
  const lgld::CpuVariant* variant = lgld::find_cpu_variant(name);
  if (variant == nullptr || !variant->supported()) return 0.0;
  using Clock = std::chrono::steady_clock;
  double best = 0.0, sink_f64 = 0.0;
  float sink_f32 = 0.0f;
  const auto start = Clock::now();
  do {
    const auto before = Clock::now();
    const int64_t done =
        is_double ? variant->probe->multiply_adds_f64(20000, &sink_f64) : variant->probe->multiply_adds_f32(20000, &sink_f32);
    const double rate = static_cast<double>(done) / std::chrono::duration<double>(Clock::now() - before).count();
    best = rate > best ? rate : best;
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return best;
}

// SiLUs per second that one thread of the named variant reaches on a buffer in the first-level cache; 0 where it can't run.
__attribute__((visibility("default"))) double lgld_peak_silus(const char* name, double seconds) {
  const lgld::CpuVariant* variant = lgld::find_cpu_variant(name);
  if (variant == nullptr || !variant->supported()) return 0.0;
  using Clock = std::chrono::steady_clock;
  constexpr int kFloats = 4096, kTurns = 50;
  alignas(64) float values[kFloats];
  double best = 0.0;
  const auto start = Clock::now();
  do {
    const auto before = Clock::now();
    for (int turn = 0; turn < kTurns; ++turn) {
      // Small values shrink by half each time; those of an earlier turn would become subnormal.
      if (turn % 16 == 0)
        for (int k = 0; k < kFloats; ++k) values[k] = 0.002f * static_cast<float>(k) - 4.0f;
      variant->lgldnet->silu(values, kFloats / variant->lgldnet->vectors.lanes);
    }
    const double rate = kFloats * kTurns / std::chrono::duration<double>(Clock::now() - before).count();
    best = rate > best ? rate : best;
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return best;
}

__attribute__((visibility("default"))) const char* lgld_compiler() { return LGLD_COMPILER; }
__attribute__((visibility("default"))) const char* lgld_built_with_torch() { return LGLD_BUILD_TORCH; }

// Why liblgld_ops_cuda.so was not built beside this library, as a sentence's end; empty where it was.
__attribute__((visibility("default"))) const char* lgld_cuda_state() { return LGLD_CUDA_STATE; }

}  // extern "C"
