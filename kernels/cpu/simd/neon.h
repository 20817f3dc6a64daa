// AArch64 Advanced SIMD: 128-bit vectors, 32 registers, fused multiply-add; part of every 64-bit ARM processor.
#pragma once
#include <arm_neon.h>

#include "half.h"
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
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) { return {vzip1q_f32(a.v, b.v)}; }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) { return {vzip2q_f32(a.v, b.v)}; }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {vnegq_f32(v)}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return select(less(a, b), a, b); }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return select(less(b, a), a, b); }
  using Mask = uint32x4_t;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return vcltq_f32(a.v, b.v); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return vceqq_f32(a.v, b.v); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) { return {vbslq_f32(m, a.v, b.v)}; }
  static LGLD_INLINE Vec power_of_two(Vec n) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(vaddq_f32(n.v, vdupq_n_f32(0x1.8p23f + 127))), 23))};
  }

  static LGLD_INLINE Vec load(const Float16* p) { return widened(p, vld1_u16(reinterpret_cast<const uint16_t*>(p))); }
  static LGLD_INLINE Vec load(const BFloat16* p) { return widened(p, vld1_u16(reinterpret_cast<const uint16_t*>(p))); }
  template <class H>
  static LGLD_INLINE Vec load_partial(const H* p, int n) {
    return widened(p, vcreate_u16(HalfBits::load(p, n).low));
  }
  LGLD_INLINE void store(Float16* p) const { vst1_u16(reinterpret_cast<uint16_t*>(p), narrowed(p)); }
  LGLD_INLINE void store(BFloat16* p) const { vst1_u16(reinterpret_cast<uint16_t*>(p), narrowed(p)); }
  template <class H>
  LGLD_INLINE void store_partial(H* p, int n) const {
    HalfBits{vget_lane_u64(vreinterpret_u64_u16(narrowed(p)), 0), 0}.store(p, n);
  }

 private:
  static LGLD_INLINE Vec widened(const Float16*, uint16x4_t h) { return {vcvt_f32_f16(vreinterpret_f16_u16(h))}; }
  static LGLD_INLINE Vec widened(const BFloat16*, uint16x4_t h) { return {vreinterpretq_f32_u32(vshll_n_u16(h, 16))}; }
  LGLD_INLINE uint16x4_t narrowed(Float16*) const { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
  LGLD_INLINE uint16x4_t narrowed(BFloat16*) const {
    const uint32x4_t bits = vreinterpretq_u32_f32(v), upper = vshrq_n_u32(bits, 16);
    const uint32x4_t odd = vandq_u32(upper, vdupq_n_u32(1));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
    const uint32x4_t number = vceqq_f32(v, v);
    return vmovn_u32(vbslq_u32(number, rounded, vorrq_u32(upper, vdupq_n_u32(0x40))));
  }
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
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) { return {vzip1q_f64(a.v, b.v)}; }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) { return {vzip2q_f64(a.v, b.v)}; }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {vaddq_f64(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {vsubq_f64(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {vmulq_f64(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {vdivq_f64(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {vnegq_f64(v)}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return select(less(a, b), a, b); }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return select(less(b, a), a, b); }
  using Mask = uint64x2_t;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return vcltq_f64(a.v, b.v); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return vceqq_f64(a.v, b.v); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) { return {vbslq_f64(m, a.v, b.v)}; }
  static LGLD_INLINE Vec power_of_two(Vec n) {
    return {vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(vaddq_f64(n.v, vdupq_n_f64(0x1.8p52 + 1023))), 52))};
  }

  static LGLD_INLINE Vec load(const float* p) { return {vcvt_f64_f32(vld1_f32(p))}; }
  static LGLD_INLINE Vec load_partial(const float* p, int n) {
    return {vcvt_f64_f32(vget_low_f32(Vec<float>::load_partial(p, n).v))};
  }
};

}  // namespace
}  // namespace lgld

#include "horizontal.h"
#include "scale.h"
#include "window.h"
