// exp, SiLU and its derivative on vectors: one function for every instruction set. Included behind a set's header.
//
// Their largest errors over all floats, subnormals included, are stated in elementwise/elementwise.h and measured by
// tools/silu_ulp.cpp. X is a vector or a bundle of vectors.
#pragma once
#include "bundle.h"

namespace lgld {
namespace {

// exp(t) = 2^n exp(r), n the integer nearest to t / ln 2, r = t - n ln 2 in [-ln2 / 2, ln2 / 2]. ln 2 is split so that n *
// kLn2High is exact without a fused multiply-add.
template <class T>
struct ExpTable;

template <>
struct ExpTable<float> {
  static constexpr float kRound = 0x1.8p23f;  // adding and subtracting it rounds to the nearest integer
  static constexpr float kLog2E = 0x1.715476p0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  // exp(t) is 0 or rounds to it below kLeast and is infinite above kMost, x exp(x) rounds to -0 below kLeastSilu.
  static constexpr float kLeast = -104.0f, kMost = 89.0f, kLeastSilu = -109.0f;
  // exp(r) = 1 + r + r^2 (c0 + c1 r + ...), minimax: relative error 3.1e-9.
  static constexpr float kTail[] = {0.499999934477964868f, 0.166665206317094969f, 0.0416683880453139967f,
                                    0.00836871687972813995f, 0.00138145986466640345f};
};

template <>
struct ExpTable<double> {
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2E = 0x1.71547652b82fep0, kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kLeast = -746.0, kMost = 710.0, kLeastSilu = -752.5;
  // Taylor's series: relative error 4e-18.
  static constexpr double kTail[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                     1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                     1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

// exp(t) = (1 + rest) * 2^exponent, rest within [-0.3, 0.5]: 1 + rest has an error of half an ulp more than rest.
template <class X>
struct ExpParts {
  X rest, exponent;
  LGLD_INLINE X value() const { return scale(X::broadcast(1) + rest, exponent); }
};

template <class X>
LGLD_INLINE ExpParts<X> exp_parts(X t) {
  using Table = ExpTable<Element<X>>;
  constexpr int kTerms = sizeof(Table::kTail) / sizeof(Element<X>);
  const X shift = X::broadcast(Table::kRound);
  const X n = X::fma(t, X::broadcast(Table::kLog2E), shift) - shift;
  const X high = X::fma(n, X::broadcast(-Table::kLn2High), t);
  const X r = X::fma(n, X::broadcast(-Table::kLn2Low), high);
  X tail = X::broadcast(Table::kTail[kTerms - 1]);
  unroll<kTerms - 1>([&](auto k)
                         LGLD_INLINE_LAMBDA { tail = X::fma(tail, r, X::broadcast(Table::kTail[kTerms - 2 - k.value])); });
  return {X::fma(tail, r * r, r), n};
}

// exp(x): 0 at -inf, inf at inf, NaN at NaN.
template <class X>
LGLD_INLINE X exp(X x) {
  // min and max return their second operand where one is NaN.
  const X t = X::min(X::broadcast(ExpTable<Element<X>>::kMost), X::max(X::broadcast(ExpTable<Element<X>>::kLeast), x));
  return exp_parts(t).value();
}

// x / (1 + exp(-x)), its limits at the infinities (inf and -0), NaN at NaN. exp of a positive number is never taken, so nothing
// overflows; below zero x exp(x) / (1 + exp(x)) is scaled last, so that subnormal results are rounded once.
template <class X>
LGLD_INLINE X silu(X x) {
  const X t = X::max(X::broadcast(ExpTable<Element<X>>::kLeastSilu), X::min(x, -x));
  const ExpParts<X> e = exp_parts(t);
  const X denominator = X::broadcast(1) + e.value();
  const typename X::Mask negative = X::less(x, X::zero());
  const X quotient = X::select(negative, X::fma(t, e.rest, t), x) / denominator;
  return X::select(negative, scale(quotient, e.exponent), quotient);
}

// d silu(x) / dx = s + x s (1 - s), s = 1 / (1 + exp(-x)): 1 at inf, -0 at -inf, NaN at NaN.
template <class X>
LGLD_INLINE X silu_derivative(X x) {
  const X t = X::max(X::broadcast(ExpTable<Element<X>>::kLeastSilu), X::min(x, -x));
  const X power = exp_parts(t).value();
  const X larger = X::broadcast(1) / (X::broadcast(1) + power);  // sigmoid(|x|)
  const X smaller = power * larger;                              // sigmoid(-|x|)
  const typename X::Mask negative = X::less(x, X::zero());
  const X product = t * (smaller * larger);
  return X::select(negative, smaller + product, larger - product);
}

}  // namespace
}  // namespace lgld
