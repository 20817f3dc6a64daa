// The rate of multiply-adds this machine reaches when nothing but arithmetic stands in the way: the floor that benchmarks
// divide by.
#pragma once
#include <cstdint>

namespace lgld {

struct ProbeKernels {
  // Runs `rounds` rounds of independent multiply-adds in registers and returns how many multiply-adds that was.
  // `sink` receives a value that depends on all of them, so that none can be left out.
  int64_t (*multiply_adds_f32)(int64_t rounds, float* sink);
  int64_t (*multiply_adds_f64)(int64_t rounds, double* sink);
};

}  // namespace lgld
