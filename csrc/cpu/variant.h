// The instruction set that the ops run: the best one, or the one that LGLD_CPU_VARIANT names.
#pragma once
#include "kernels/cpu/variants.h"

namespace lgld {

// Chosen once, on first use. Throws std::runtime_error where LGLD_CPU_VARIANT names a set that is unknown, was not built, or
// that this machine lacks.
const CpuVariant& active_cpu_variant();

}  // namespace lgld
