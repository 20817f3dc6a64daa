// AArch64 Advanced SIMD: 128-bit vectors, 32 registers, fused multiply-add; part of every 64-bit ARM processor.
#pragma once
#include <arm_neon.h>

#include "unroll.h"

namespace lgld {
namespace {

constexpr int kVectorRegisters = 32;

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 4;
  float32x4_t v;
  static LGLD_INLINE Vec zero() { return {vdupq_n_f32(0.0f)}; }
  static LGLD_INLINE Vec broadcast(float value) { return {vdupq_n_f32(value)}; }
  static LGLD_INLINE Vec load(const float* p) { return {vld1q_f32(p)}; }
  static LGLD_INLINE Vec load_partial(const float* p, int n) {
    const float32x4_t none = vdupq_n_f32(0.0f);
    switch (n) {
      case 0: return {none};
      case 1: return {vld1q_lane_f32(p, none, 0)};
      case 2: return {vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f))};
      case 3: return {vld1q_lane_f32(p + 2, vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f)), 2)};
      default: return load(p);
    }
  }
  LGLD_INLINE void store(float* p) const { vst1q_f32(p, v); }
  LGLD_INLINE void store_partial(float* p, int n) const {
    switch (n) {
      case 0: return;
      case 1: vst1q_lane_f32(p, v, 0); return;
      case 2: vst1_f32(p, vget_low_f32(v)); return;
      case 3:
        vst1_f32(p, vget_low_f32(v));
        vst1q_lane_f32(p + 2, v, 2);
        return;
      default: store(p);
    }
  }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  // Elements 0, 2, 4, ... and 1, 3, 5, ... of a, followed by those of b.
  static LGLD_INLINE Vec even(Vec a, Vec b) { return {vuzp1q_f32(a.v, b.v)}; }
  static LGLD_INLINE Vec odd(Vec a, Vec b) { return {vuzp2q_f32(a.v, b.v)}; }
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 2;
  float64x2_t v;
  static LGLD_INLINE Vec zero() { return {vdupq_n_f64(0.0)}; }
  static LGLD_INLINE Vec broadcast(double value) { return {vdupq_n_f64(value)}; }
  static LGLD_INLINE Vec load(const double* p) { return {vld1q_f64(p)}; }
  static LGLD_INLINE Vec load_partial(const double* p, int n) {
    if (n == 0) return zero();
    return n == 1 ? Vec{vcombine_f64(vld1_f64(p), vdup_n_f64(0.0))} : load(p);
  }
  LGLD_INLINE void store(double* p) const { vst1q_f64(p, v); }
  LGLD_INLINE void store_partial(double* p, int n) const {
    if (n == 1) vst1_f64(p, vget_low_f64(v));
    if (n > 1) store(p);
  }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
  static LGLD_INLINE Vec even(Vec a, Vec b) { return {vuzp1q_f64(a.v, b.v)}; }
  static LGLD_INLINE Vec odd(Vec a, Vec b) { return {vuzp2q_f64(a.v, b.v)}; }
};

}  // namespace
}  // namespace lgld

#include "window.h"
