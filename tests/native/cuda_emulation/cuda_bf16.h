// In place of the CUDA header of this name.
#pragma once
#include "emulation.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) { return ::emulation::widen_brain(v.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {::emulation::narrow_brain(v)}; }
