// The operations of the SIMD layer over arrays: how tests and tools see each set's arithmetic, conversions and functions.
#pragma once
#include <cstdint>

#include "../simd/half.h"

namespace lgld {

enum class ElementwiseOp {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kNegate,
  kMin,
  kMax,
  kSelectLess,   // a < b ? a : c
  kSelectEqual,  // a == b ? a : c
  kFma,          // a * b + c
  kScale,        // a * 2^b
  kExp,
  kSilu,
  kSiluDerivative,
  kCount,
};

// Bounds of every set's errors, in units in the last place of the exact value; of the derivative, which has a zero, in units in
// the last place of 1. tools/silu_ulp.cpp found at most 1.01, 2.76 and 1.64 in float, over every float of magnitude 2^-4 to 128
// and every 61st beyond, and 1.00, 2.46 and 1.54 in double, over a sample.
constexpr double kExpUlpF32 = 1.1, kSiluUlpF32 = 2.8, kSiluDerivativeUlpF32 = 1.7;
constexpr double kExpUlpF64 = 1.1, kSiluUlpF64 = 2.8, kSiluDerivativeUlpF64 = 1.7;

struct ElementwiseKernels {
  // out[i] = op(a[i], b[i], c[i]) for i in [0, count); operands that the op does not have are not read.
  template <class T>
  using Map = void (*)(ElementwiseOp op, const T* a, const T* b, const T* c, T* out, int64_t count);
  Map<float> map_f32;
  Map<double> map_f64;
  // The sum of kLanes elements at a time, each in the order of horizontal_sum; the last one may have fewer.
  void (*sums_f32)(const float* a, float* out, int64_t count);
  void (*sums_f64)(const double* a, double* out, int64_t count);
  template <class From, class To>
  using Convert = void (*)(const From* from, To* to, int64_t count);
  Convert<Float16, float> widen_f16;
  Convert<BFloat16, float> widen_bf16;
  Convert<float, double> widen_f32;
  Convert<float, Float16> narrow_f16;
  Convert<float, BFloat16> narrow_bf16;
};

}  // namespace lgld
