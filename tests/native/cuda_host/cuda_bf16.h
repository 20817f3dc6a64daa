// In place of the toolkit's header of this name: see cuda_fp16.h.
#pragma once
#include "simd/half.h"

struct __nv_bfloat16 {
  lgld::BFloat16 value;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) : value(lgld::narrow(v, lgld::BFloat16{})) {}
};
inline float __bfloat162float(__nv_bfloat16 v) { return lgld::widen(v.value); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
