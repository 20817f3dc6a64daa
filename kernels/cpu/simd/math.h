// exp, SiLU and its derivative on vectors: one function for every instruction set. Included behind a set's header.
//
// Their largest errors over all floats, subnormals included, are stated in elementwise/elementwise.h and measured by
// tools/silu_ulp.cpp.
#pragma once

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
template <class T>
struct ExpParts {
  Vec<T> rest, exponent;
  LGLD_INLINE Vec<T> value() const { return scale(Vec<T>::broadcast(T(1)) + rest, exponent); }
};

template <class T>
LGLD_INLINE ExpParts<T> exp_parts(Vec<T> t) {
  using V = Vec<T>;
  using Table = ExpTable<T>;
  constexpr int kTerms = sizeof(Table::kTail) / sizeof(T);
  const V shift = V::broadcast(Table::kRound);
  const V n = V::fma(t, V::broadcast(Table::kLog2E), shift) - shift;
  const V high = V::fma(n, V::broadcast(-Table::kLn2High), t);
  const V r = V::fma(n, V::broadcast(-Table::kLn2Low), high);
  V tail = V::broadcast(Table::kTail[kTerms - 1]);
  unroll<kTerms - 1>([&](auto k)
                         LGLD_INLINE_LAMBDA { tail = V::fma(tail, r, V::broadcast(Table::kTail[kTerms - 2 - k.value])); });
  return {V::fma(tail, r * r, r), n};
}

// exp(x): 0 at -inf, inf at inf, NaN at NaN.
template <class T>
LGLD_INLINE Vec<T> exp(Vec<T> x) {
  using V = Vec<T>;
  // min and max return their second operand where one is NaN.
  const V t = V::min(V::broadcast(ExpTable<T>::kMost), V::max(V::broadcast(ExpTable<T>::kLeast), x));
  return exp_parts<T>(t).value();
}

// x / (1 + exp(-x)), its limits at the infinities (inf and -0), NaN at NaN. exp of a positive number is never taken, so nothing
// overflows; below zero x exp(x) / (1 + exp(x)) is scaled last, so that subnormal results are rounded once.
template <class T>
LGLD_INLINE Vec<T> silu(Vec<T> x) {
  using V = Vec<T>;
  const V t = V::max(V::broadcast(ExpTable<T>::kLeastSilu), V::min(x, -x));
  const ExpParts<T> e = exp_parts<T>(t);
  const V denominator = V::broadcast(T(1)) + e.value();
  const typename V::Mask negative = V::less(x, V::zero());
  const V quotient = V::select(negative, V::fma(t, e.rest, t), x) / denominator;
  return V::select(negative, scale(quotient, e.exponent), quotient);
}

// d silu(x) / dx = s + x s (1 - s), s = 1 / (1 + exp(-x)): 1 at inf, -0 at -inf, NaN at NaN.
template <class T>
LGLD_INLINE Vec<T> silu_derivative(Vec<T> x) {
  using V = Vec<T>;
  const V t = V::max(V::broadcast(ExpTable<T>::kLeastSilu), V::min(x, -x));
  const V power = exp_parts<T>(t).value();
  const V larger = V::broadcast(T(1)) / (V::broadcast(T(1)) + power);  // sigmoid(|x|)
  const V smaller = power * larger;                                    // sigmoid(-|x|)
  const typename V::Mask negative = V::less(x, V::zero());
  const V product = t * (smaller * larger);
  return V::select(negative, smaller + product, larger - product);
}

}  // namespace
}  // namespace lgld
