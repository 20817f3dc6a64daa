// CUDA's 16-bit types by the CPU kernels' conversions. In place of the toolkit's header of this name.
#pragma once
#include "simd/half.h"

struct __half {
  lgld::Float16 value;
  __half() = default;
  explicit __half(float v) : value(lgld::narrow(v, lgld::Float16{})) {}
};
inline float __half2float(__half v) { return lgld::widen(v.value); }
inline __half __float2half_rn(float v) { return __half(v); }
