// In place of the CUDA header of this name.
#pragma once
#include "emulation.h"

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float v) : bits(::emulation::narrow_half(v)) {}
};

inline float __half2float(__half v) { return ::emulation::widen_half(v.bits); }
inline __half __float2half_rn(float v) { return __half(v); }
