// Winograd's transforms F(4x4, 3x3) and F(4x4, 5x5) of one vector of channels: 6 or 8 points, 0, +-p and infinity.
//
// With Q_p(x) the product of x^2 - q^2 over the other pairs q, the rows of B^T for +-p are x^2 Q_p(x^2) +- p x Q_p(x^2): an
// even and an odd part that the pair shares. A^T has the powers of the points as columns, so it shares sums and differences.
#pragma once
#include "gemm.h"

namespace lgld {
namespace {

template <int kPairs>
struct Points;
template <>
struct Points<2> {
  static constexpr double at(int k) { return kPoints3[k]; }
};
template <>
struct Points<3> {
  static constexpr double at(int k) { return kPoints5[k]; }
};

template <int kPairs>
constexpr double square(int k) {
  return Points<kPairs>::at(k) * Points<kPairs>::at(k);
}

// a * x + y without a multiplication where a is 1.
template <class Scale>
LGLD_INLINE F scaled_sum(Scale, F x, F y) {
  if constexpr (Scale::value() == 1.0) {
    return x + y;
  } else {
    return F::fma(F::broadcast(static_cast<float>(Scale::value())), x, y);
  }
}

template <int kPairs, int k>
struct Point {
  static constexpr double value() { return Points<kPairs>::at(k); }
};
template <int kPairs, int k>
struct MinusPoint {
  static constexpr double value() { return -Points<kPairs>::at(k); }
};

LGLD_INLINE F constant(double v) { return F::broadcast(static_cast<float>(v)); }

// out = B^T in.
template <int kPairs>
LGLD_INLINE void transform_input(const F (&in)[2 * kPairs + 2], F (&out)[2 * kPairs + 2]) {
  if constexpr (kPairs == 2) {
    constexpr double a = square<2>(0), b = square<2>(1);
    out[0] = F::fma(constant(a * b), in[0], F::fma(constant(-a - b), in[2], in[4]));
    out[5] = F::fma(constant(a * b), in[1], F::fma(constant(-a - b), in[3], in[5]));
    unroll<2>([&](auto k) LGLD_INLINE_LAMBDA {
      constexpr double other = square<2>(1 - k.value);
      const F even = F::fma(constant(-other), in[2], in[4]), odd = F::fma(constant(-other), in[1], in[3]);
      out[1 + 2 * k] = scaled_sum(Point<2, k.value>{}, odd, even);
      out[2 + 2 * k] = scaled_sum(MinusPoint<2, k.value>{}, odd, even);
    });
  } else {
    // With the middle pair at +-1 and the outer ones reciprocal, r = p^2: (x^2 - 1)(x^2 - 1 / r) = x^2 (x^2 - 1) - (x^2 - 1) /
    // r, so the outer pairs share their differences, and what adds stays off the units that multiply.
    static_assert(square<3>(1) == 1.0 && square<3>(0) * square<3>(2) == 1.0);
    constexpr double r = square<3>(2), ends = 1.0 + r + 1.0 / r;
    const F even_high = in[6] - in[4], even_low = in[4] - in[2], odd_high = in[5] - in[3], odd_low = in[3] - in[1];
    out[0] = F::fma(constant(-ends), even_low, in[6] - in[0]);
    out[7] = F::fma(constant(-ends), in[5] - in[3], in[7] - in[1]);
    const F even1 = F::fma(constant(-r - 1.0 / r), in[4], in[6] + in[2]);
    const F odd1 = F::fma(constant(-r - 1.0 / r), in[3], in[5] + in[1]);
    out[3] = even1 + odd1, out[4] = even1 - odd1;
    const F even0 = F::fma(constant(-r), even_low, even_high), odd0 = F::fma(constant(-r), odd_low, odd_high);
    out[1] = scaled_sum(Point<3, 0>{}, odd0, even0), out[2] = scaled_sum(MinusPoint<3, 0>{}, odd0, even0);
    const F even2 = F::fma(constant(-1.0 / r), even_low, even_high), odd2 = F::fma(constant(-1.0 / r), odd_low, odd_high);
    out[5] = scaled_sum(Point<3, 2>{}, odd2, even2), out[6] = scaled_sum(MinusPoint<3, 2>{}, odd2, even2);
  }
}

// out = A^T in, four outputs.
template <int kPairs>
LGLD_INLINE void transform_output(const F (&in)[2 * kPairs + 2], F (&out)[4]) {
  F sum[kPairs], difference[kPairs];
  unroll<kPairs>([&](auto k) LGLD_INLINE_LAMBDA {
    sum[k] = in[1 + 2 * k] + in[2 + 2 * k];
    difference[k] = in[1 + 2 * k] - in[2 + 2 * k];
  });
  out[0] = in[0] + sum[0], out[2] = F::zero(), out[1] = F::zero(), out[3] = in[2 * kPairs + 1];
  unroll<kPairs>([&](auto k) LGLD_INLINE_LAMBDA {
    constexpr double p = Points<kPairs>::at(k.value);
    if constexpr (k.value > 0) out[0] = out[0] + sum[k];
    if constexpr (k.value == 0) {
      out[1] = p == 1.0 ? difference[k] : constant(p) * difference[k];
      out[2] = p == 1.0 ? sum[k] : constant(p * p) * sum[k];
    } else if constexpr (p == 1.0) {
      out[1] = out[1] + difference[k], out[2] = out[2] + sum[k];
    } else {
      out[1] = F::fma(constant(p), difference[k], out[1]), out[2] = F::fma(constant(p * p), sum[k], out[2]);
    }
    if constexpr (p == 1.0) {
      out[3] = out[3] + difference[k];
    } else {
      out[3] = F::fma(constant(p * p * p), difference[k], out[3]);
    }
  });
}

// Where the rows and columns of a tile's window stand, from its first pixel: floats.
struct Window2d {
  int64_t row[8], column[8];
};

// All frequencies of one tile: v[f * pitch], `vectors` vectors each.
template <int kPairs>
LGLD_NOINLINE void winograd_input(const float* tile, const Window2d& window, int64_t vectors, float* v, int64_t pitch) {
  constexpr int n = 2 * kPairs + 2;
  for (int64_t vector = 0; vector < vectors; ++vector, tile += F::kLanes, v += F::kLanes) {
    alignas(64) float half[n][n][F::kLanes];
    for (int column = 0; column < n; ++column) {
      const float* at = tile + window.column[column];
      F in[n], out[n];
      unroll<n>([&](auto k) LGLD_INLINE_LAMBDA { in[k] = F::load(at + window.row[k]); });
      transform_input<kPairs>(in, out);
      unroll<n>([&](auto k) LGLD_INLINE_LAMBDA { out[k].store(half[k][column]); });
    }
    float* to = v;
    for (int row = 0; row < n; ++row) {
      F in[n], out[n];
      unroll<n>([&](auto k) LGLD_INLINE_LAMBDA { in[k] = F::load(half[row][k]); });
      transform_input<kPairs>(in, out);
      unroll<n>([&](auto k) LGLD_INLINE_LAMBDA {
        out[k].store(to);
        to += pitch;
      });
    }
  }
}

// The 4 x 4 outputs of one vector of channels of one tile.
template <int kPairs>
LGLD_INLINE void winograd_output(const float* m, int64_t pitch, float (&out)[4][4][F::kLanes]) {
  constexpr int n = 2 * kPairs + 2;
  alignas(64) float half[4][n][F::kLanes];
  for (int column = 0; column < n; ++column) {
    const float* at = m + column * pitch;
    F in[n], four[4];
    unroll<n>([&](auto k) LGLD_INLINE_LAMBDA {
      in[k] = F::load(at);
      at += n * pitch;
    });
    transform_output<kPairs>(in, four);
    unroll<4>([&](auto k) LGLD_INLINE_LAMBDA { four[k].store(half[k][column]); });
  }
  for (int row = 0; row < 4; ++row) {
    F in[n], four[4];
    unroll<n>([&](auto k) LGLD_INLINE_LAMBDA { in[k] = F::load(half[row][k]); });
    transform_output<kPairs>(in, four);
    unroll<4>([&](auto k) LGLD_INLINE_LAMBDA { four[k].store(out[row][k]); });
  }
}

}  // namespace
}  // namespace lgld
