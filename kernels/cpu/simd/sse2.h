// 128-bit vectors that every x86-64 processor has. No fused multiply-add and no masked access.
#pragma once
#include <emmintrin.h>

#include "half.h"
#include "unroll.h"

namespace lgld {
namespace {

constexpr int kVectorRegisters = 16;

LGLD_INLINE __m128i select_bits(__m128i mask, __m128i a, __m128i b) {
  return _mm_or_si128(_mm_and_si128(mask, a), _mm_andnot_si128(mask, b));
}

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
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) { return {_mm_unpacklo_ps(a.v, b.v)}; }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) { return {_mm_unpackhi_ps(a.v, b.v)}; }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {_mm_add_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {_mm_sub_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {_mm_mul_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {_mm_div_ps(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {_mm_xor_ps(v, _mm_set1_ps(-0.0f))}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return {_mm_min_ps(a.v, b.v)}; }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return {_mm_max_ps(a.v, b.v)}; }
  using Mask = __m128;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return _mm_cmplt_ps(a.v, b.v); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return _mm_cmpeq_ps(a.v, b.v); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) {
    return {_mm_castsi128_ps(select_bits(_mm_castps_si128(m), _mm_castps_si128(a.v), _mm_castps_si128(b.v)))};
  }
  static LGLD_INLINE Vec power_of_two(Vec n) {
    return {_mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(_mm_add_ps(n.v, _mm_set1_ps(0x1.8p23f + 127))), 23))};
  }

  template <class H>
  static LGLD_INLINE Vec load(const H* p) {
    return widened(p, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  template <class H>
  static LGLD_INLINE Vec load_partial(const H* p, int n) {
    return widened(p, _mm_cvtsi64_si128(static_cast<int64_t>(HalfBits::load(p, n).low)));
  }
  template <class H>
  LGLD_INLINE void store(H* p) const {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), narrowed(p));
  }
  template <class H>
  LGLD_INLINE void store_partial(H* p, int n) const {
    HalfBits{static_cast<uint64_t>(_mm_cvtsi128_si64(narrowed(p))), 0}.store(p, n);
  }

 private:
  // The conversions of half.h on four lanes.
  static LGLD_INLINE Vec widened(const Float16*, __m128i half) {
    const __m128i h = _mm_unpacklo_epi16(half, _mm_setzero_si128());
    const __m128i magnitude = _mm_and_si128(h, _mm_set1_epi32(0x7fff)), moved = _mm_slli_epi32(magnitude, 13);
    const __m128i normal = _mm_add_epi32(moved, _mm_set1_epi32(112 << 23));
    const __m128 subnormal = _mm_mul_ps(_mm_cvtepi32_ps(magnitude), _mm_set1_ps(0x1p-24f));
    const __m128i quiet = _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7c00)), _mm_set1_epi32(0x400000));
    const __m128i special = _mm_or_si128(_mm_or_si128(moved, _mm_set1_epi32(0x7f800000)), quiet);
    const __m128i finite = select_bits(_mm_cmplt_epi32(magnitude, _mm_set1_epi32(0x400)), _mm_castps_si128(subnormal), normal);
    const __m128i value = select_bits(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff)), special, finite);
    return {_mm_castsi128_ps(_mm_or_si128(value, _mm_slli_epi32(_mm_andnot_si128(_mm_set1_epi32(0x7fff), h), 16)))};
  }
  static LGLD_INLINE Vec widened(const BFloat16*, __m128i half) {
    return {_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), half))};
  }
  LGLD_INLINE __m128i narrowed(Float16*) const {
    const __m128i bits = _mm_castps_si128(v), magnitude = _mm_and_si128(bits, _mm_set1_epi32(0x7fffffff));
    const __m128i shifted = _mm_srli_epi32(magnitude, 13);
    const __m128i nan = _mm_or_si128(_mm_and_si128(shifted, _mm_set1_epi32(0x3ff)), _mm_set1_epi32(0x7e00));
    const __m128 sum = _mm_add_ps(_mm_castsi128_ps(magnitude), _mm_set1_ps(0.5f));
    const __m128i subnormal = _mm_sub_epi32(_mm_castps_si128(sum), _mm_set1_epi32(0x3f000000));
    const __m128i odd = _mm_and_si128(shifted, _mm_set1_epi32(1));
    const __m128i normal =
        _mm_srli_epi32(_mm_add_epi32(_mm_add_epi32(magnitude, _mm_set1_epi32(0xfff - (112 << 23))), odd), 13);
    __m128i half = select_bits(_mm_cmplt_epi32(magnitude, _mm_set1_epi32(0x38800000)), subnormal, normal);
    half = select_bits(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x477fefff)), _mm_set1_epi32(0x7c00), half);
    half = select_bits(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7f800000)), nan, half);
    return lower_halves(_mm_or_si128(half, _mm_slli_epi32(_mm_srli_epi32(bits, 31), 15)));
  }
  LGLD_INLINE __m128i narrowed(BFloat16*) const {
    const __m128i bits = _mm_castps_si128(v), upper = _mm_srli_epi32(bits, 16);
    const __m128i odd = _mm_and_si128(upper, _mm_set1_epi32(1));
    const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), odd), 16);
    const __m128i nan = _mm_castps_si128(_mm_cmpunord_ps(v, v));
    return lower_halves(select_bits(nan, _mm_or_si128(upper, _mm_set1_epi32(0x40)), rounded));
  }
  // The lower 16 bits of each word. The only packing instruction saturates signed words, so they are made signed first.
  static LGLD_INLINE __m128i lower_halves(__m128i words) {
    const __m128i wrapped = _mm_srai_epi32(_mm_slli_epi32(words, 16), 16);
    return _mm_packs_epi32(wrapped, wrapped);
  }
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
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) { return {_mm_unpacklo_pd(a.v, b.v)}; }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) { return {_mm_unpackhi_pd(a.v, b.v)}; }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {_mm_add_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {_mm_sub_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {_mm_mul_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {_mm_div_pd(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {_mm_xor_pd(v, _mm_set1_pd(-0.0))}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return {_mm_min_pd(a.v, b.v)}; }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return {_mm_max_pd(a.v, b.v)}; }
  using Mask = __m128d;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return _mm_cmplt_pd(a.v, b.v); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return _mm_cmpeq_pd(a.v, b.v); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) {
    return {_mm_castsi128_pd(select_bits(_mm_castpd_si128(m), _mm_castpd_si128(a.v), _mm_castpd_si128(b.v)))};
  }
  static LGLD_INLINE Vec power_of_two(Vec n) {
    return {_mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(_mm_add_pd(n.v, _mm_set1_pd(0x1.8p52 + 1023))), 52))};
  }

  static LGLD_INLINE Vec load(const float* p) {
    return {_mm_cvtps_pd(_mm_loadl_pi(_mm_setzero_ps(), reinterpret_cast<const __m64*>(p)))};
  }
  static LGLD_INLINE Vec load_partial(const float* p, int n) { return {_mm_cvtps_pd(Vec<float>::load_partial(p, n).v)}; }
};

}  // namespace
}  // namespace lgld

#include "horizontal.h"
#include "scale.h"
#include "window.h"
