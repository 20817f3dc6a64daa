// One lane, no intrinsics: the oracle that every other variant is tested against.
#pragma once
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
};

}  // namespace
}  // namespace lgld

#include "window.h"
