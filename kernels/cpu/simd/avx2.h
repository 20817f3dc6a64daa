// AVX2 with FMA and F16C: 256-bit vectors, 16 registers.
#pragma once
#include <immintrin.h>

#include "half.h"
#include "unroll.h"

namespace lgld {
namespace {

constexpr int kVectorRegisters = 16;

// A window of 8 words that begins 8 - n words into this table has its first n lanes set.
alignas(64) const int kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

LGLD_INLINE __m256i first_words(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + 8 - n)); }

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  __m256 v;
  static LGLD_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
  static LGLD_INLINE Vec broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static LGLD_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static LGLD_INLINE Vec load_partial(const float* p, int n) { return {_mm256_maskload_ps(p, first_words(n))}; }
  LGLD_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  LGLD_INLINE void store_partial(float* p, int n) const { _mm256_maskstore_ps(p, first_words(n), v); }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // Elements 0, 2, 4, ... and 1, 3, 5, ... of a, followed by those of b. The shuffle works within 128 bits: a0 a2 b0 b2 a4 ...
  static LGLD_INLINE Vec even(Vec a, Vec b) { return in_order(_mm256_shuffle_ps(a.v, b.v, 0x88)); }
  static LGLD_INLINE Vec odd(Vec a, Vec b) { return in_order(_mm256_shuffle_ps(a.v, b.v, 0xDD)); }
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) {
    return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20)};
  }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) {
    return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31)};
  }
  static LGLD_INLINE Vec in_order(__m256 pairs) {
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xD8))};
  }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {_mm256_xor_ps(v, _mm256_set1_ps(-0.0f))}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  using Mask = __m256;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m)}; }
  static LGLD_INLINE Vec power_of_two(Vec n) {
    return {
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(_mm256_add_ps(n.v, _mm256_set1_ps(0x1.8p23f + 127))), 23))};
  }

  static LGLD_INLINE Vec load(const Float16* p) { return widened(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static LGLD_INLINE Vec load(const BFloat16* p) { return widened(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  template <class H>
  static LGLD_INLINE Vec load_partial(const H* p, int n) {
    const HalfBits bits = HalfBits::load(p, n);
    return widened(p, _mm_set_epi64x(static_cast<int64_t>(bits.high), static_cast<int64_t>(bits.low)));
  }
  template <class H>
  LGLD_INLINE void store(H* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(p));
  }
  template <class H>
  LGLD_INLINE void store_partial(H* p, int n) const {
    const __m128i half = narrowed(p);
    const HalfBits bits{static_cast<uint64_t>(_mm_cvtsi128_si64(half)), static_cast<uint64_t>(_mm_extract_epi64(half, 1))};
    bits.store(p, n);
  }

 private:
  static LGLD_INLINE Vec widened(const Float16*, __m128i h) { return {_mm256_cvtph_ps(h)}; }
  static LGLD_INLINE Vec widened(const BFloat16*, __m128i h) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
  }
  LGLD_INLINE __m128i narrowed(Float16*) const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  LGLD_INLINE __m128i narrowed(BFloat16*) const {
    const __m256i bits = _mm256_castps_si256(v), upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i half = _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }
};

template <>
struct Vec<double> {
  static constexpr int kLanes = 4;
  __m256d v;
  static LGLD_INLINE Vec zero() { return {_mm256_setzero_pd()}; }
  static LGLD_INLINE Vec broadcast(double value) { return {_mm256_set1_pd(value)}; }
  static LGLD_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static LGLD_INLINE Vec load_partial(const double* p, int n) { return {_mm256_maskload_pd(p, first_words(2 * n))}; }
  LGLD_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  LGLD_INLINE void store_partial(double* p, int n) const { _mm256_maskstore_pd(p, first_words(2 * n), v); }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static LGLD_INLINE Vec even(Vec a, Vec b) { return {_mm256_permute4x64_pd(_mm256_unpacklo_pd(a.v, b.v), 0xD8)}; }
  static LGLD_INLINE Vec odd(Vec a, Vec b) { return {_mm256_permute4x64_pd(_mm256_unpackhi_pd(a.v, b.v), 0xD8)}; }
  static LGLD_INLINE Vec zip_low(Vec a, Vec b) {
    return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x20)};
  }
  static LGLD_INLINE Vec zip_high(Vec a, Vec b) {
    return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x31)};
  }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
  LGLD_INLINE Vec operator-() const { return {_mm256_xor_pd(v, _mm256_set1_pd(-0.0))}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_pd(a.v, b.v)}; }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_pd(a.v, b.v)}; }
  using Mask = __m256d;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ); }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ); }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_pd(b.v, a.v, m)}; }
  static LGLD_INLINE Vec power_of_two(Vec n) {
    return {
        _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(_mm256_add_pd(n.v, _mm256_set1_pd(0x1.8p52 + 1023))), 52))};
  }

  static LGLD_INLINE Vec load(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
  static LGLD_INLINE Vec load_partial(const float* p, int n) {
    return {_mm256_cvtps_pd(_mm_maskload_ps(p, _mm256_castsi256_si128(first_words(n))))};
  }
};

}  // namespace
}  // namespace lgld

#include "horizontal.h"
#include "scale.h"
#include "window.h"
