// Several vectors that go through a function side by side, an operation of all of them before the next operation. Included
// behind a set's header.
//
// A chain like SiLU's takes some 100 cycles and 30 instructions. A processor that looks ahead about 100 waiting instructions
// sees three such chains one behind the other: one instruction a cycle. Side by side more of what it sees can start.
#pragma once
#include "unroll.h"

namespace lgld {
namespace {

// As many as leave registers for a function's constants.
constexpr int kBundle = kVectorRegisters >= 32 ? 4 : 2;

template <class T, int N>
struct Bundle {
  Vec<T> at[N];

  // at[k] = f(k)
  template <class F>
  static LGLD_INLINE Bundle make(F f) {
    Bundle result;
    unroll<N>([&](auto k) LGLD_INLINE_LAMBDA { result.at[k] = f(k); });
    return result;
  }
  static LGLD_INLINE Bundle zero() { return broadcast(T(0)); }
  static LGLD_INLINE Bundle broadcast(T value) {
    return make([&](auto) LGLD_INLINE_LAMBDA { return Vec<T>::broadcast(value); });
  }
  static LGLD_INLINE Bundle fma(Bundle a, Bundle b, Bundle c) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return Vec<T>::fma(a.at[k], b.at[k], c.at[k]); });
  }
  friend LGLD_INLINE Bundle operator+(Bundle a, Bundle b) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return a.at[k] + b.at[k]; });
  }
  friend LGLD_INLINE Bundle operator-(Bundle a, Bundle b) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return a.at[k] - b.at[k]; });
  }
  friend LGLD_INLINE Bundle operator*(Bundle a, Bundle b) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return a.at[k] * b.at[k]; });
  }
  friend LGLD_INLINE Bundle operator/(Bundle a, Bundle b) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return a.at[k] / b.at[k]; });
  }
  LGLD_INLINE Bundle operator-() const {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return -at[k]; });
  }
  static LGLD_INLINE Bundle min(Bundle a, Bundle b) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return Vec<T>::min(a.at[k], b.at[k]); });
  }
  static LGLD_INLINE Bundle max(Bundle a, Bundle b) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return Vec<T>::max(a.at[k], b.at[k]); });
  }
  struct Mask {
    typename Vec<T>::Mask at[N];
  };
  static LGLD_INLINE Mask less(Bundle a, Bundle b) {
    Mask result;
    unroll<N>([&](auto k) LGLD_INLINE_LAMBDA { result.at[k] = Vec<T>::less(a.at[k], b.at[k]); });
    return result;
  }
  static LGLD_INLINE Bundle select(Mask m, Bundle a, Bundle b) {
    return make([&](auto k) LGLD_INLINE_LAMBDA { return Vec<T>::select(m.at[k], a.at[k], b.at[k]); });
  }
};

template <class T, int N>
LGLD_INLINE Bundle<T, N> scale(Bundle<T, N> a, Bundle<T, N> n) {
  return Bundle<T, N>::make([&](auto k) LGLD_INLINE_LAMBDA { return scale(a.at[k], n.at[k]); });
}

template <class X>
struct ElementOf;
template <class T>
struct ElementOf<Vec<T>> {
  using Type = T;
};
template <class T, int N>
struct ElementOf<Bundle<T, N>> {
  using Type = T;
};
// Of a vector or a bundle of them.
template <class X>
using Element = typename ElementOf<X>::Type;

// f(Int<n>, v) for runs of n vectors from vector v on: n = kMost while there are as many, then the rest at once.
template <int kMost, class F>
LGLD_INLINE void each_bundle(int64_t vectors, F f) {
  int64_t v = 0;
  for (; v + kMost <= vectors; v += kMost) f(Int<kMost>{}, v);
  unroll<kMost - 1>([&](auto left) LGLD_INLINE_LAMBDA {
    if (vectors - v == left + 1) f(Int<left.value + 1>{}, v);
  });
}

}  // namespace
}  // namespace lgld
