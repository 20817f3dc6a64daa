// AVX-512 (F, BW, DQ, VL): 512-bit vectors, 32 registers, masked loads and stores.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace lgld {
namespace {

constexpr int kVectorRegisters = 32;

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 16;
  __m512 v;
  static LGLD_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static LGLD_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
  static LGLD_INLINE Vec broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static LGLD_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static LGLD_INLINE Vec load_partial(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static LGLD_INLINE Vec load_masked(const float* p, unsigned mask) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p)};
  }
  LGLD_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  LGLD_INLINE void store_partial(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // Elements 0, 2, 4, ... and 1, 3, 5, ... of a, followed by those of b.
  static LGLD_INLINE Vec even(Vec a, Vec b) {
    const __m512i at = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return {_mm512_permutex2var_ps(a.v, at, b.v)};
  }
  static LGLD_INLINE Vec odd(Vec a, Vec b) {
    const __m512i at = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return {_mm512_permutex2var_ps(a.v, at, b.v)};
  }
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 8;
  __m512d v;
  static LGLD_INLINE __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static LGLD_INLINE Vec zero() { return {_mm512_setzero_pd()}; }
  static LGLD_INLINE Vec broadcast(double value) { return {_mm512_set1_pd(value)}; }
  static LGLD_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static LGLD_INLINE Vec load_partial(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
  static LGLD_INLINE Vec load_masked(const double* p, unsigned mask) {
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p)};
  }
  LGLD_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  LGLD_INLINE void store_partial(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static LGLD_INLINE Vec even(Vec a, Vec b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0), b.v)};
  }
  static LGLD_INLINE Vec odd(Vec a, Vec b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1), b.v)};
  }
};

LGLD_INLINE __m512i bits(__m512 v) { return _mm512_castps_si512(v); }
LGLD_INLINE __m512i bits(__m512d v) { return _mm512_castpd_si512(v); }

// kLanes elements from each of p, p + 1, ...: two loads and a shuffle per shift. Every unaligned 64-byte load would cross a
// cache line, and such a load costs two.
constexpr bool kMaskedWindows = true;

template <class T>
struct Window {
  Vec<T> low, high;
  static LGLD_INLINE Window load(const T* p) { return {Vec<T>::load(p), Vec<T>::load(p + Vec<T>::kLanes)}; }
  static LGLD_INLINE Window load_within(const T* p, int first, int last) {
    const unsigned inside = static_cast<unsigned>(((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1));
    return {Vec<T>::load_masked(p, inside), Vec<T>::load_masked(p + Vec<T>::kLanes, inside >> Vec<T>::kLanes)};
  }
  template <int kShift>
  LGLD_INLINE Vec<T> at() const {
    static_assert(kShift <= Vec<T>::kLanes);
    if constexpr (kShift == 0) {
      return low;
    } else if constexpr (sizeof(T) == sizeof(float)) {
      return {_mm512_castsi512_ps(_mm512_alignr_epi32(bits(high.v), bits(low.v), kShift))};
    } else {
      return {_mm512_castsi512_pd(_mm512_alignr_epi64(bits(high.v), bits(low.v), kShift))};
    }
  }
};

}  // namespace
}  // namespace lgld
