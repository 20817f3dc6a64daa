// AVX-512 (F, BW, DQ, VL): 512-bit vectors, 32 registers, masked loads and stores.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "half.h"
#include "unroll.h"

namespace lgld {
namespace {

constexpr int kVectorRegisters = 32;

// Numbers of 16-bit elements for a permutation.
struct alignas(64) Places {
  int16_t at[32];
  LGLD_INLINE __m512i vector() const { return _mm512_load_si512(at); }
};

// Elements 1, 3, 5, ... first: the upper halves of 32-bit ones.
constexpr Places upper_halves() {
  Places p{};
  for (int k = 0; k < 32; ++k) p.at[k] = static_cast<int16_t>((2 * k + 1) % 32);
  return p;
}

// Elements 0, 1, 2, ... to places 1, 3, 5, ...
constexpr Places to_upper_halves() {
  Places p{};
  for (int k = 0; k < 16; ++k) p.at[2 * k + 1] = static_cast<int16_t>(k);
  return p;
}

constexpr Places kUpperHalves = upper_halves(), kToUpperHalves = to_upper_halves();

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
  // Lanes [0, 8) all `low`, the others all `high`.
  static LGLD_INLINE Vec halves(float low, float high) {
    return {_mm512_mask_broadcastss_ps(_mm512_set1_ps(low), 0xff00, _mm_set_ss(high))};
  }
  LGLD_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  LGLD_INLINE void store_partial(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  // The first n of lanes [0, 8), or of the others.
  template <int kHalf>
  LGLD_INLINE void store_half(float* p, int n) const {
    __m256 half = _mm512_extractf32x8_ps(v, kHalf);
    // GCC makes one instruction of this and of a masked store, which faults on lanes that it leaves out.
    asm("" : "+v"(half));
    if (n == 8) {
      _mm256_storeu_ps(p, half);
    } else {
      _mm256_mask_storeu_ps(p, static_cast<__mmask8>(first(n)), half);
    }
  }
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
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) {
    const __m512i at = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_permutex2var_ps(a.v, at, b.v)};
  }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) {
    const __m512i at = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    return {_mm512_permutex2var_ps(a.v, at, b.v)};
  }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {_mm512_xor_ps(v, _mm512_set1_ps(-0.0f))}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  using Mask = __mmask16;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }

  static LGLD_INLINE Vec load(const Float16* p) { return widened(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static LGLD_INLINE Vec load(const BFloat16* p) { return widened(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  template <class H>
  static LGLD_INLINE Vec load_partial(const H* p, int n) {
    return load_masked(p, first(n));
  }
  template <class H>
  static LGLD_INLINE Vec load_masked(const H* p, unsigned mask) {
    return widened(p, _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p));
  }
  template <class H>
  LGLD_INLINE void store(H* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(p));
  }
  template <class H>
  LGLD_INLINE void store_partial(H* p, int n) const {
    _mm256_mask_storeu_epi16(p, first(n), narrowed(p));
  }
  template <int kHalf, class H>
  LGLD_INLINE void store_half(H* p, int n) const {
    __m128i half = _mm256_extracti128_si256(narrowed(p), kHalf);
    asm("" : "+v"(half));  // as above
    if (n == 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half);
    } else {
      _mm_mask_storeu_epi16(p, static_cast<__mmask8>(first(n)), half);
    }
  }

 private:
  static LGLD_INLINE Vec widened(const Float16*, __m256i h) { return {_mm512_cvtph_ps(h)}; }
  // One shuffle; extending and shifting would be two.
  static LGLD_INLINE Vec widened(const BFloat16*, __m256i h) {
    const __m512i halves = _mm512_castsi256_si512(h);
    return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, kToUpperHalves.vector(), halves))};
  }
  LGLD_INLINE __m256i narrowed(Float16*) const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // Adding 0x7fff, or 0x8000 where the last bit that stays is set, rounds to the nearest in the upper half. The fix-up puts
  // the NaN itself, made quiet, in place of what came of it, and leaves all other results (a table of responses: 2, 2, 0, ...).
  LGLD_INLINE __m256i narrowed(BFloat16*) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i half = _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000));
    const __m512 sum = _mm512_castsi512_ps(_mm512_add_epi32(bits, half));
    const __m512i rounded = _mm512_castps_si512(_mm512_fixupimm_ps(sum, v, _mm512_set1_epi32(0x22), 0));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(kUpperHalves.vector(), rounded));
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
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), b.v)};
  }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) {
    return {_mm512_permutex2var_pd(a.v, _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4), b.v)};
  }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {_mm512_xor_pd(v, _mm512_set1_pd(-0.0))}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_pd(a.v, b.v)}; }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_pd(a.v, b.v)}; }
  using Mask = __mmask8;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_pd(m, b.v, a.v)}; }

  static LGLD_INLINE Vec load(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
  static LGLD_INLINE Vec load_partial(const float* p, int n) { return {_mm512_cvtps_pd(_mm256_maskz_loadu_ps(first(n), p))}; }
};

LGLD_INLINE Vec<float> scale(Vec<float> a, Vec<float> n) { return {_mm512_scalef_ps(a.v, n.v)}; }
LGLD_INLINE Vec<double> scale(Vec<double> a, Vec<double> n) { return {_mm512_scalef_pd(a.v, n.v)}; }
LGLD_INLINE Vec<float> scale_normal(Vec<float> a, Vec<float> n) { return scale(a, n); }
LGLD_INLINE Vec<double> scale_normal(Vec<double> a, Vec<double> n) { return scale(a, n); }

LGLD_INLINE __m512i bits(__m512 v) { return _mm512_castps_si512(v); }
LGLD_INLINE __m512i bits(__m512d v) { return _mm512_castpd_si512(v); }

// kLanes elements from each of p, p + 1, ...: two loads and a shuffle per shift. Every unaligned 64-byte load would cross a
// cache line, and such a load costs two.
constexpr bool kMaskedWindows = true;

// Bits [first, last) of 32.
LGLD_INLINE unsigned bits_within(int first, int last) {
  return static_cast<unsigned>(((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1));
}

template <class T, class S = T>
struct Window {
  Vec<T> low, high;
  static LGLD_INLINE Window load(const S* p) { return {Vec<T>::load(p), Vec<T>::load(p + Vec<T>::kLanes)}; }
  static LGLD_INLINE Window load_within(const S* p, int first, int last) {
    const unsigned inside = bits_within(first, last);
    return {Vec<T>::load_masked(p, inside), Vec<T>::load_masked(p + Vec<T>::kLanes, inside >> Vec<T>::kLanes)};
  }
  template <int kShift>
  LGLD_INLINE Vec<T> at() const {
    static_assert(kShift <= Vec<T>::kLanes);
    if constexpr (kShift == 0) {
      return low;
    } else if constexpr (kShift == Vec<T>::kLanes) {
      return high;
    } else if constexpr (sizeof(T) == sizeof(float)) {
      return {_mm512_castsi512_ps(_mm512_alignr_epi32(bits(high.v), bits(low.v), kShift))};
    } else {
      return {_mm512_castsi512_pd(_mm512_alignr_epi64(bits(high.v), bits(low.v), kShift))};
    }
  }
};

}  // namespace
}  // namespace lgld

#include "horizontal.h"
