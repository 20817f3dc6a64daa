// SiLU over rows of a buffer, and loops over a pixel's vectors of channels.
#pragma once
#include "gemm.h"

namespace lgld {
namespace {

// x / (1 + 2^t), t = -x / ln 2, for feature maps: three quarters of the instructions of the elementwise op's SiLU, which is
// exact to 2.1 ulp everywhere. The error is below 1.2e-7 * max(1, |x|), and relative to the result below 2.5e-7 + 1.4e-8 |x|
// (7e-8 |x| where no multiply-add is fused); results smaller than 1.5e-36, those of x < -87, become -0. As in torch NaN and
// -inf give NaN, inf gives inf. 2^t = 2^n 2^f, n the integer nearest to t.
LGLD_INLINE F silu(F x) {
  // Of 2^f - 1 over f, minimax on [-1/2, 1/2]: relative error of 2^f 2.6e-9.
  constexpr float kPower[] = {0.6931472067185375f,  0.24022650922424724f,   0.05550327193163993f,
                              0.00961805664951722f, 0.0013400441580195398f, 0.00015461456301343578f};
  // min and max return their second operand where one is NaN. At -89 t is 128.4 and 2^t, the power of 2^128, infinite: the
  // quotient is then -0, of -inf NaN.
  const F both = F::min(F::broadcast(87.0f), F::max(F::broadcast(-89.0f), x));
  const F slope = F::broadcast(-1.44269504f), round = F::broadcast(0x1.8p23f);
  const F n = F::fma(both, slope, round) - round, f = F::fma(both, slope, -n);
  F power = F::broadcast(kPower[5]);
  unroll<5>([&](auto k) LGLD_INLINE_LAMBDA { power = F::fma(power, f, F::broadcast(kPower[4 - k.value])); });
  power = F::fma(power, f, F::broadcast(1.0f));
  return x / (F::broadcast(1.0f) + scale_normal(power, n));
}

// f(Int<count>, first vector) in groups of four while there are four, then one by one: independent chains hide the latencies of
// SiLU's polynomial.
template <class Function>
LGLD_INLINE void for_vectors(int64_t vectors, Function&& f) {
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4) f(Int<4>{}, v);
  for (; v < vectors; ++v) f(Int<1>{}, v);
}

void silu_rows(float* p, int64_t floats) {
  for_vectors(floats / F::kLanes, [&](auto n, int64_t first) LGLD_INLINE_LAMBDA {
    float* at = p + first * F::kLanes;
    unroll<n.value>([&](auto k) LGLD_INLINE_LAMBDA { silu(F::load(at + k * F::kLanes)).store(at + k * F::kLanes); });
  });
}

void zero_floats(float* p, int64_t floats) {
  for (int64_t k = 0; k < floats; ++k) p[k] = 0.0f;
}

LGLD_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows [begin, end) of a task.
struct RowRange {
  int64_t begin, end;
};
LGLD_INLINE RowRange rows_of(int64_t task, int64_t rows, int64_t height) {
  return {task * rows, smaller((task + 1) * rows, height)};
}

}  // namespace
}  // namespace lgld
