// The compiled instruction sets and what this machine can run of them.
#pragma once
#include "elementwise/elementwise.h"
#include "ffm/ffm.h"
#include "involution2d/involution2d.h"
#include "lgldnet/lgldnet.h"
#include "probe/probe.h"

namespace lgld {

struct CpuVariant {
  const char* name;
  const char* needs;    // processor features, in words, for messages
  bool (*supported)();  // by this processor and operating system
  const ElementwiseKernels* elementwise;
  const FfmKernels* ffm;
  const Involution2dKernels* involution2d;
  const LgldnetKernels* lgldnet;
  const ProbeKernels* probe;
};

// All compiled variants, the fastest first; the scalar one is last and runs everywhere.
const CpuVariant* cpu_variants(int* count);

// The variant called `name`, or null.
const CpuVariant* find_cpu_variant(const char* name);

// The first one that this machine supports.
const CpuVariant* best_cpu_variant();

}  // namespace lgld
