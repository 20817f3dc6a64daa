// 128-bit vectors that every x86-64 processor has. No fused multiply-add and no masked access.
#pragma once
#include <emmintrin.h>

#include "unroll.h"

namespace lgld {
namespace {

constexpr int kVectorRegisters = 16;

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 4;
  __m128 v;
  static LGLD_INLINE Vec zero() { return {_mm_setzero_ps()}; }
  static LGLD_INLINE Vec broadcast(float value) { return {_mm_set1_ps(value)}; }
  static LGLD_INLINE Vec load(const float* p) { return {_mm_loadu_ps(p)}; }
  static LGLD_INLINE Vec load_partial(const float* p, int n) {
    const __m128 none = _mm_setzero_ps();
    switch (n) {
      case 0: return {none};
      case 1: return {_mm_load_ss(p)};
      case 2: return {_mm_loadl_pi(none, reinterpret_cast<const __m64*>(p))};
      case 3: return {_mm_movelh_ps(_mm_loadl_pi(none, reinterpret_cast<const __m64*>(p)), _mm_load_ss(p + 2))};
      default: return load(p);
    }
  }
  LGLD_INLINE void store(float* p) const { _mm_storeu_ps(p, v); }
  LGLD_INLINE void store_partial(float* p, int n) const {
    switch (n) {
      case 0: return;
      case 1: _mm_store_ss(p, v); return;
      case 2: _mm_storel_pi(reinterpret_cast<__m64*>(p), v); return;
      case 3:
        _mm_storel_pi(reinterpret_cast<__m64*>(p), v);
        _mm_store_ss(p + 2, _mm_movehl_ps(v, v));
        return;
      default: store(p);
    }
  }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm_add_ps(_mm_mul_ps(a.v, b.v), c.v)}; }
  // Elements 0, 2, 4, ... and 1, 3, 5, ... of a, followed by those of b.
  static LGLD_INLINE Vec even(Vec a, Vec b) { return {_mm_shuffle_ps(a.v, b.v, 0x88)}; }
  static LGLD_INLINE Vec odd(Vec a, Vec b) { return {_mm_shuffle_ps(a.v, b.v, 0xDD)}; }
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 2;
  __m128d v;
  static LGLD_INLINE Vec zero() { return {_mm_setzero_pd()}; }
  static LGLD_INLINE Vec broadcast(double value) { return {_mm_set1_pd(value)}; }
  static LGLD_INLINE Vec load(const double* p) { return {_mm_loadu_pd(p)}; }
  static LGLD_INLINE Vec load_partial(const double* p, int n) {
    if (n == 0) return zero();
    return n == 1 ? Vec{_mm_load_sd(p)} : load(p);
  }
  LGLD_INLINE void store(double* p) const { _mm_storeu_pd(p, v); }
  LGLD_INLINE void store_partial(double* p, int n) const {
    if (n == 1) _mm_store_sd(p, v);
    if (n > 1) store(p);
  }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm_add_pd(_mm_mul_pd(a.v, b.v), c.v)}; }
  static LGLD_INLINE Vec even(Vec a, Vec b) { return {_mm_unpacklo_pd(a.v, b.v)}; }
  static LGLD_INLINE Vec odd(Vec a, Vec b) { return {_mm_unpackhi_pd(a.v, b.v)}; }
};

}  // namespace
}  // namespace lgld

#include "window.h"
