// One lane, no intrinsics: the oracle that every other variant is tested against.
#pragma once
#include <type_traits>

#include "half.h"
#include "unroll.h"

namespace lgld {
namespace {

constexpr int kVectorRegisters = 16;

template <class T>
struct Vec {
  static constexpr int kLanes = 1;
  T v;
  static LGLD_INLINE Vec zero() { return {T(0)}; }
  static LGLD_INLINE Vec broadcast(T value) { return {value}; }
  static LGLD_INLINE Vec load(const T* p) { return {*p}; }
  static LGLD_INLINE Vec load_partial(const T* p, int n) { return {n > 0 ? *p : T(0)}; }
  LGLD_INLINE void store(T* p) const { *p = v; }
  LGLD_INLINE void store_partial(T* p, int n) const {
    if (n > 0) *p = v;
  }
  static LGLD_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  // Elements 0, 2, 4, ... and 1, 3, 5, ... of a, followed by those of b.
  static LGLD_INLINE Vec even(Vec a, Vec) { return a; }
  static LGLD_INLINE Vec odd(Vec, Vec b) { return b; }
  // Elements of a and b in turn: the first vector of them, and the second.
  static LGLD_INLINE Vec zip_low(Vec a, Vec) { return a; }
  static LGLD_INLINE Vec zip_high(Vec, Vec b) { return b; }

  friend LGLD_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend LGLD_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend LGLD_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend LGLD_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  LGLD_INLINE Vec operator-() const { return {-v}; }
  static LGLD_INLINE Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
  static LGLD_INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  using Mask = bool;
  static LGLD_INLINE Mask less(Vec a, Vec b) { return a.v < b.v; }
  static LGLD_INLINE Mask equal(Vec a, Vec b) { return a.v == b.v; }
  static LGLD_INLINE Vec select(Mask m, Vec a, Vec b) { return m ? a : b; }
  // n + 1.5 * 2^(fraction bits) has the integer n in its last bits; with the bias added, a shift makes it the exponent.
  static LGLD_INLINE Vec power_of_two(Vec n) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    constexpr int kFraction = sizeof(T) == 8 ? 52 : 23, kBias = sizeof(T) == 8 ? 1023 : 127;
    const T sum = n.v + (T(3) * T(Bits{1} << (kFraction - 1)) + T(kBias));
    Bits bits;
    std::memcpy(&bits, &sum, sizeof(bits));
    bits <<= kFraction;
    std::memcpy(&n.v, &bits, sizeof(bits));
    return n;
  }

  // Narrower storage: 16 bits for float, float for double.
  template <class E>
  static LGLD_INLINE Vec load(const E* p) {
    return {widen(*p)};
  }
  template <class E>
  static LGLD_INLINE Vec load_partial(const E* p, int n) {
    return {n > 0 ? widen(*p) : T(0)};
  }
  template <class E>
  LGLD_INLINE void store(E* p) const {
    *p = narrow(v, E{});
  }
  template <class E>
  LGLD_INLINE void store_partial(E* p, int n) const {
    if (n > 0) *p = narrow(v, E{});
  }
};

}  // namespace
}  // namespace lgld

#include "horizontal.h"
#include "scale.h"
#include "window.h"
