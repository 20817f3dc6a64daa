// AVX2 with FMA: 256-bit vectors, 16 registers.
#pragma once
#include <immintrin.h>

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
  static LGLD_INLINE Vec in_order(__m256 pairs) {
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xD8))};
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
};

}  // namespace
}  // namespace lgld

#include "window.h"
