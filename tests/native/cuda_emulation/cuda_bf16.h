// In place of the CUDA header of this name.
#pragma once
#include "emulation.h"

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float v) : bits(::emulation::narrow_brain(v)) {}
};

inline float __bfloat162float(__nv_bfloat16 v) { return ::emulation::widen_brain(v.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
